package fs

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/imgfs/imgfs/imgsrc"
)

// A registry lists of an index only the image for the mount's platform. The others are asked for when somebody follows their links
// in platforms/: those lead to ids/<digest>, and looking that up asks.

// askChild returns the image whose manifest has a digest that an index lists; nil if no source has it that can be asked. It takes
// no longer than the registry may: ten seconds.
func (f *FS) askChild(ctx context.Context, s *state, hex string) (*image, error) {
	if n := len(hex); n != digest.SHA256.Size()*2 && n != digest.SHA384.Size()*2 && n != digest.SHA512.Size()*2 {
		return nil, nil
	}
	var errs error
	for _, e := range s.snap.Entries {
		for _, h := range e.Held {
			d := listedAs(h.Desc().Lists, hex)
			src, ok := h.Source.(imgsrc.Asker)
			if !ok || d == "" {
				continue
			}
			if s.snap.ByDigest(d) == nil {
				err := src.Ask(ctx, h.Desc(), d)
				if err != nil {
					errs = worse(errs, err)
					continue
				}
				s = f.refresh(ctx)
			}
			if child := s.snap.ByDigest(d); child != nil {
				return s.byID[child.ID], nil
			}
		}
	}
	return nil, errs
}

// listedAs returns the digest with these digits; empty if there is none.
func listedAs(list []digest.Digest, hex string) digest.Digest {
	i := slices.IndexFunc(list, func(d digest.Digest) bool { return strings.HasSuffix(string(d), ":"+hex) })
	if i < 0 {
		return ""
	}
	return list[i]
}

// worse is the error that says more: that a registry does not answer, and not that another lacks the image.
func worse(is, err error) error {
	if is == nil || errors.Is(is, imgsrc.ErrNotFound) {
		return err
	}
	return is
}

// mayHave says whether an index is in a source that may have an image which is not listed, because nobody has asked for it.
func mayHave(index *imgsrc.Entry, d digest.Digest) bool {
	return slices.ContainsFunc(index.Held, func(h imgsrc.Held) bool {
		src, ok := h.Source.(imgsrc.Asker)
		return ok && slices.Contains(h.Desc().Lists, d) && !src.Lacks(h.Desc(), d)
	})
}

// askAll has the mount's registries asked for all that their indexes list, unless they were. Error: that it cannot be told what is
// there.
func (f *FS) askAll(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	for _, src := range f.catalog.Sources() {
		if src, ok := src.(imgsrc.Asker); ok && !f.isFollowed(src) {
			g.Go(func() error { return src.AskAll(gctx) })
		}
	}
	return g.Wait()
}
