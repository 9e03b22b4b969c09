package fs

import (
	"context"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// askedSource has one image more when it is asked for it.
type askedSource struct {
	*fakeSource
	child imgsrc.Listed
}

var _ imgsrc.Asker = (*askedSource)(nil)

func (s *askedSource) Ask(_ context.Context, _ imgsrc.Desc, d digest.Digest) error {
	if d != s.child.Desc().Digest {
		return imgsrc.ErrNotFound
	}
	s.set(append(slices.Clone(s.listing.Images), s.child)...)
	return nil
}

func (s *askedSource) AskAll(context.Context) error { return nil }

func (s *askedSource) Lacks(imgsrc.Desc, digest.Digest) bool { return false }

// What is asked for by its digest is there the first time: as a directory if that is its id, as an index's and an artifact's is, and
// otherwise as a link to it.
func TestAskedForByDigest(t *testing.T) {
	for _, isID := range []bool{true, false} {
		child, index := makeImage(t, "child"), makeImage(t, "index")
		hex := child.desc.Digest.Encoded()
		if isID {
			child.desc.ID = hex
		}
		index.desc.Lists = []digest.Digest{child.desc.Digest}
		src := &askedSource{&fakeSource{}, named(child)}
		src.set(named(index))
		f := treeFrom(t, src)
		for range 2 {
			n := find(t, f, idsNode, hex)
			if is := n.view() == viewImage; is != isID {
				t.Errorf("its id is its digest: %t, and it is a directory: %t", isID, is)
			}
			if !isID {
				if to, err := f.view(n).readlink(t.Context(), n); err != nil || string(to) != child.desc.ID {
					t.Errorf("it is a link to %q, %v", to, err)
				}
			}
		}
	}
}
