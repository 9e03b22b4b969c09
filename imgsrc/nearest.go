package imgsrc

import (
	"math"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Nearest is the manifest whose layers are read: the first one's, unless that is in a registry and others are over the same
// config. Then it is one that is here; or else, if most of the layers would have to be fetched for the first, the one that
// needs least. It stays that as long as a source has it and nothing nearer has come: what is known of its files would be
// lost, and what was fetched.
func (e *Entry) Nearest() Held { return e.Held[e.near] }

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

// WithLayer is what the tar of layer n is read from where near is what the layers are read from: that, unless the layer would
// have to be fetched there, and is here from another manifest.
func (e *Entry) WithLayer(n int, near Held) Held {
	if far, ok := near.Image.(Remote); !ok || far.Local(n) {
		return near
	}
	for i, h := range e.Held {
		if far, ok := h.Image.(Remote); ok && e.standsFor(i) && far.Local(n) {
			return h
		}
	}
	return near
}

// choose returns which manifest is the nearest. was is the image as it was before; nil if it was not there.
func (e *Entry) choose(was *Entry) int {
	first := e.First()
	if !first.isFar() || first.Desc().Config == "" || len(e.Held) == 1 {
		return 0
	}
	best := 0
	if was != nil {
		h := was.Nearest()
		if i := e.indexOf(h.Source, h.Desc().Digest); i > 0 && e.standsFor(i) {
			best = i
		}
	}
	if !e.Held[best].isFar() {
		return best
	}
	if i := slices.IndexFunc(e.Held, func(h Held) bool { return !h.isFar() && first.isSameImage(h) }); i > 0 {
		return i
	}
	return e.leastLacking(best)
}

// leastLacking returns which of the manifests in registries lacks least: best, unless another lacks no more than half as
// much. For less it is not worth reading the layers from another than the first one's blobs, which may be read beside.
func (e *Entry) leastLacking(best int) int {
	bound := int64(-1) // until it is asked for
	for i, h := range e.Held {
		if i == best || !h.isFar() || !e.standsFor(i) {
			continue
		}
		if bound < 0 {
			bound = e.Held[best].lacks() / 2
		}
		if bound == 0 {
			break
		}
		if n := h.lacks(); n <= bound {
			best, bound = i, max(n-1, 0)
		}
	}
	return best
}

// standsFor says whether the layers of the image may be read from one of its manifests.
func (e *Entry) standsFor(i int) bool {
	first, h := e.First(), e.Held[i]
	return i == 0 || first.isSameImage(h) && (!h.isFar() || len(first.Layers) == len(h.Layers) && first.vouchesFor(h))
}

func (h Held) isSameImage(o Held) bool {
	return o.Desc().Damaged == nil && o.Desc().Config == h.Desc().Config
}

// vouchesFor says whether another manifest of the same config is to be believed. The tables of contents of its layers are its
// word alone: no diff id shows what they say. So one that somebody asked a registry for, whoever that was, stands for no
// image of other repositories than its own.
func (h Held) vouchesFor(o Held) bool {
	return !o.Asked || slices.ContainsFunc(o.RepoDigests, func(name string) bool {
		repo, _, _ := strings.Cut(name, "@")
		return slices.ContainsFunc(h.RepoDigests, func(of string) bool { return strings.HasPrefix(of, repo+"@") })
	})
}

// isFar says whether the layers are in a registry.
func (h Held) isFar() bool {
	_, far := h.Image.(Remote)
	return far
}

// lacks is how many bytes have to come before the layers can be read; more than anything if they cannot, or nobody knows.
func (h Held) lacks() int64 {
	if n, ok := h.Image.(Remote).Lacks(); ok {
		return n
	}
	return math.MaxInt64
}
