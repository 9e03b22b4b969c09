package registry

import (
	"context"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/flight"
)

const (
	// spoiltTime is how long a blob that is wrong as a whole is not fetched again for a part that is: each attempt costs all of it.
	spoiltTime = 10 * time.Minute
	// spoiltWeight is how many times as long as it took to find that is the answer for all who want the blob, within the bounds of
	// flight.Kept: one look into an image asks for a layer in many ways, one after the other.
	spoiltWeight = 10
)

// spoilt is that what a registry sends for a digest is something else.
type spoilt struct {
	err   error
	at    time.Time
	until time.Time // before that it is the answer
}

func (s *Source) spoiltOf(d digest.Digest) spoilt {
	x, _ := s.spoilt.Load(d)
	is, _ := x.(spoilt)
	return is
}

// isSpoilt returns why a blob is not to be fetched for a part of it; nil if it may be.
func (s *Source) isSpoilt(d digest.Digest) error {
	if is := s.spoiltOf(d); time.Since(is.at) < spoiltTime {
		return is.err
	}
	return nil
}

// keptSpoilt returns what is the answer still to whoever wants a blob; nil if it is to be fetched.
func (s *Source) keptSpoilt(d digest.Digest) error {
	if is := s.spoiltOf(d); time.Now().Before(is.until) {
		return is.err
	}
	return nil
}

// isSpoiltSaid says whether the log has had it that a blob is wrong, which it has been ever since.
func (s *Source) isSpoiltSaid(d digest.Digest) bool { return s.spoiltOf(d).err != nil }

// spoil takes note of a blob that a fetch which began at a time has found wrong, and says so, once until it comes as it should. Only
// one fetch of it is under way.
func (s *Source) spoil(d digest.Digest, err error, begun time.Time) {
	now := time.Now()
	if !s.isSpoiltSaid(d) {
		s.log.Error("fetching blob", "source", s.Name(), "blob", d, "error", err)
	}
	s.spoilt.Store(d, spoilt{err: err, at: now, until: now.Add(flight.Kept(spoiltWeight * now.Sub(begun)))})
}

// fetchUnlessSpoilt is fetch, unless that has just found the registry's bytes wrong.
func (x *blob) fetchUnlessSpoilt(ctx context.Context) error {
	s := x.blobs.source
	if err := s.keptSpoilt(x.digest); err != nil {
		return err
	}
	begun := time.Now()
	err := x.fetch(ctx)
	switch {
	case err == nil:
		s.spoilt.Delete(x.digest)
	case errors.Is(err, imgsrc.ErrDamaged) && !errors.Is(err, errOtherSize) && ctx.Err() == nil:
		err = imgsrc.Logged(err)
		s.spoil(x.digest, err, begun)
	}
	return err
}
