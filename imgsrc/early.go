package imgsrc

import "context"

// A Verdict is what becomes of bytes that were given out before all of their blob was verified. Verdicts are compared with ==.
type Verdict interface {
	// Wait returns when that is known: nil if the bytes are right. Otherwise whoever keeps them has to throw them away: they
	// are wrong, or will never have been verified. It returns ctx's error when ctx ends first.
	Wait(ctx context.Context) error
}

type earlyKey struct{}

// WithEarly returns a context in which a blob's ReadAt need not wait until all of the blob is verified, if the blob is read
// from its beginning on: took is called, before such a read returns, with the verdict that is still to come. The end of a blob,
// [Withheld] bytes of it, is never given out early, so nobody comes to have a whole one of wrong bytes. A read of anything but
// what follows on what was read, and any read in another context, waits.
func WithEarly(ctx context.Context, took func(Verdict)) context.Context {
	return context.WithValue(ctx, earlyKey{}, took)
}

// Early returns what ctx was made with, or nil.
func Early(ctx context.Context) func(Verdict) {
	took, _ := ctx.Value(earlyKey{}).(func(Verdict))
	return took
}

// Withheld is how many bytes at a blob's end wait until all of it is verified, so that a smaller one waits as a whole. It is
// more than what programs put behind the end of a tar (up to a MiB): one who stops reading there has read
// into it. And to hash as much takes a few milliseconds.
const Withheld = 4 << 20
