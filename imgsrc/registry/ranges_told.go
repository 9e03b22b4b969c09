package registry

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Fetching is called when a blob begins to come from a repository (HOST/REPO), as a whole or in parts; size is that of all of it,
// -1 if it is unknown. It returns what is called with how many bytes are here, and what is called in the end; both nil if nobody
// wants to know of this one. Parts that are asked for one soon after the other are one call, and their bytes those that have come
// since.
type Fetching func(repo string, d digest.Digest, size int64, parts bool) (arrived func(int64), ended func(error))

// restTime is how long nothing is asked for until what came of a blob by ranges counts as one fetch that has ended. A request
// is too little to be told of by itself: one for each of a thousand files would hide everything else.
const restTime = time.Second

// partsTold are the requests for parts of blobs, as far as somebody is told of them (see Options.Fetching).
type partsTold struct {
	fetching Fetching // nil: nobody is

	mu    sync.Mutex
	blobs map[digest.Digest]*told
}

// A told fetch is the requests for parts of one blob that follow one another.
type told struct {
	arrived func(int64)
	over    func(error)
	bytes   int64 // that have come
	flying  int   // requests
	err     error // of the last one
	rest    *time.Timer
}

// begin says that a part of a blob of size bytes is asked for, and returns what is called when it has come. That must be done.
func (p *partsTold) begin(place string, d digest.Digest, size int64) (ended func(n int, err error)) {
	nobody := func(int, error) {}
	if p.fetching == nil {
		return nobody
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.blobs[d]
	if t == nil {
		t = &told{}
		if t.arrived, t.over = p.fetching(place, d, size, true); t.arrived == nil {
			return nobody
		}
		if p.blobs == nil {
			p.blobs = map[digest.Digest]*told{}
		}
		p.blobs[d] = t
	}
	t.flying++
	if t.rest != nil {
		t.rest.Stop()
	}
	return func(n int, err error) { p.end(d, t, n, err) }
}

func (p *partsTold) end(d digest.Digest, t *told, n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t.flying--
	t.bytes += int64(n)
	t.err = err
	t.arrived(t.bytes)
	if t.flying > 0 || p.blobs[d] != t {
		return
	}
	t.rest = time.AfterFunc(restTime, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.blobs[d] == t && t.flying == 0 {
			p.overLocked(d, t)
		}
	})
}

func (p *partsTold) overLocked(d digest.Digest, t *told) {
	delete(p.blobs, d)
	if t.rest != nil {
		t.rest.Stop()
	}
	t.over(t.err)
}

// complete says that all of a blob is here.
func (p *partsTold) complete(d digest.Digest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := p.blobs[d]; t != nil && t.flying == 0 {
		p.overLocked(d, t)
	}
}

// close ends what is told of. Nothing is asked for any more.
func (p *partsTold) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for d, t := range p.blobs {
		p.overLocked(d, t)
	}
}
