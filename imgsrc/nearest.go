package imgsrc

import (
	"slices"

	"github.com/opencontainers/go-digest"
)

// Nearest is the manifest whose layers are read: the first one's, unless that is in a registry and another source has the
// same layers here.
func (e *Entry) Nearest() Held {
	first := e.Held[0]
	if !first.isFar() || first.Desc().Config == "" {
		return first
	}
	for _, h := range e.Held[1:] {
		if !h.isFar() && h.Desc().Damaged == nil && h.Desc().Config == first.Desc().Config {
			return h
		}
	}
	return first
}

// HeldBy returns the manifest of this digest that a source has. Not ok if it has none.
func (e *Entry) HeldBy(source Source, d digest.Digest) (h Held, ok bool) {
	if i := e.indexOf(source, d); i >= 0 {
		return e.Held[i], true
	}
	return Held{}, false
}

func (e *Entry) indexOf(source Source, d digest.Digest) int {
	return slices.IndexFunc(e.Held, func(h Held) bool { return h.Source == source && h.Desc().Digest == d })
}

// Blobs is what the blobs of the first one's layers are read from where near is what its layers are read from: that, if its
// manifest is the same.
func (e *Entry) Blobs(near Held) Held {
	if near.Desc().Digest == e.First().Desc().Digest {
		return near
	}
	return e.First()
}

// isFar says whether the layers are in a registry.
func (h Held) isFar() bool {
	_, far := h.Image.(Remote)
	return far
}
