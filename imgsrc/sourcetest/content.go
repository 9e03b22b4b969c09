package sourcetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

var discard = slog.New(slog.DiscardHandler)

// ReadAll reads a content from its beginning to its end, in pieces of an odd size.
func ReadAll(ctx context.Context, c imgsrc.Content) ([]byte, error) {
	var all []byte
	buf := make([]byte, 100_003)
	for {
		n, err := c.ReadAt(ctx, buf, int64(len(all)))
		all = append(all, buf[:n]...)
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
	}
}

// diffs reads every layer as a tar.
func (s *suite) diffs() {
	read := 0
	for _, img := range s.sound() {
		for n, l := range s.facts(img).Layers {
			c, err := img.Diff(s.Context(), n)
			if errors.Is(err, imgsrc.ErrAbsent) || errors.Is(err, imgsrc.ErrUnsupported) {
				continue
			}
			if err != nil {
				s.Errorf("image %s, layer %d: %v", img.Desc().ID, n, err)
				continue
			}
			read++
			if l.DiffID == "" {
				s.Errorf("image %s, layer %d has no diff id", img.Desc().ID, n)
			}
			s.content(c, l.DiffID, -1)
		}
	}
	if read != s.want.Diffs {
		s.Errorf("%d layers could be read, want %d", read, s.want.Diffs)
	}
}

// blobs reads every layer as the manifest names it.
func (s *suite) blobs() {
	for _, img := range s.sound() {
		for _, l := range s.facts(img).Layers {
			c, err := img.Blob(s.Context(), l.Digest)
			kept := s.want.Blobs || l.Digest == l.DiffID
			switch {
			case errors.Is(err, imgsrc.ErrAbsent) && !kept:
			case err != nil:
				s.Errorf("image %s, blob %s: %v", img.Desc().ID, l.Digest, err)
			default:
				if !kept {
					s.Errorf("image %s has the blob %s, want ErrAbsent", img.Desc().ID, l.Digest)
				}
				s.content(c, l.Digest, l.Size)
			}
		}
	}
}

// content reads c whole, and then anyhow, and closes it. size is -1 if it is not known.
func (s *suite) content(c imgsrc.Content, want digest.Digest, size int64) {
	s.Helper()
	defer func() {
		if err := c.Close(); err != nil {
			s.Errorf("closing %s: %v", want, err)
		}
	}()
	got, err := c.Size(s.Context())
	if err != nil {
		s.Errorf("size of %s: %v", want, err)
		return
	}
	if size >= 0 && got != size {
		s.Errorf("%s has %d bytes, and the manifest says %d", want, got, size)
	}
	size = got

	// From start to end, as a kernel reads, with a bit of everything kept to compare with.
	sum := want.Algorithm().Hash()
	samples := map[int64][]byte{}
	buf := make([]byte, 128<<10)
	var off int64
	for err == nil {
		var n int
		n, err = c.ReadAt(s.Context(), buf, off)
		if n < len(buf) && err == nil {
			s.Errorf("reading %s at %d: %d bytes of %d without an error", want, off, n, len(buf))
			return
		}
		sum.Write(buf[:n])
		if len(samples) < 64 {
			samples[off] = bytes.Clone(buf[:n])
		}
		off += int64(n)
	}
	if err != io.EOF {
		s.Errorf("reading %s at %d: %v", want, off, err)
		return
	}
	if off != size {
		s.Errorf("%s has %d bytes, and Size says %d", want, off, size)
	}
	if got := digest.NewDigest(want.Algorithm(), sum); got != want {
		s.Errorf("the bytes of %s are %s", want, got)
		return
	}
	s.edges(c, want, size)

	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(4, uint64(i)))
			for at, sample := range samples {
				if len(sample) == 0 {
					continue
				}
				start := r.IntN(len(sample))
				p := make([]byte, 1+r.IntN(len(sample)-start))
				n, err := c.ReadAt(s.Context(), p, at+int64(start))
				if err != nil && err != io.EOF || n != len(p) || !bytes.Equal(p, sample[start:start+n]) {
					s.Errorf("reading %d bytes of %s at %d: %d, %v, or not what a sequential read gave", len(p), want, at+int64(start), n, err)
				}
			}
		})
	}
	wg.Wait()
}

// edges reads where there is little or nothing.
func (s *suite) edges(c imgsrc.Content, what digest.Digest, size int64) {
	s.Helper()
	for _, test := range []struct {
		off int64
		len int
		n   int
	}{
		{size, 1, 0},
		{size, 4096, 0},
		{size + 1, 1, 0},
		{size + 1<<40, 1, 0},
		{max(0, size-3), 100, int(min(3, size))},
	} {
		p := make([]byte, test.len)
		if n, err := c.ReadAt(s.Context(), p, test.off); n != test.n || err != io.EOF {
			s.Errorf("reading %d bytes of %s at %d of %d: %d, %v, want %d, EOF", test.len, what, test.off, size, n, err, test.n)
		}
	}
	for _, off := range []int64{0, size / 2, size} {
		if n, err := c.ReadAt(s.Context(), nil, off); n != 0 || err != nil && err != io.EOF {
			s.Errorf("reading nothing of %s at %d: %d, %v", what, off, n, err)
		}
	}
	if n, err := c.ReadAt(s.Context(), make([]byte, 1), -1); n != 0 || err == nil || err == io.EOF {
		s.Errorf("reading %s at -1: %d, %v", what, n, err)
	}
}
