package imgsrc

import "context"

type waitingKey struct{}

// WithWaiting returns a context with which [Waiting] calls tell, one call after the other.
func WithWaiting(ctx context.Context, tell func(why string)) context.Context {
	return context.WithValue(ctx, waitingKey{}, tell)
}

// Waiting is called by a source whose work waits for somebody else, with why, and with "" when it goes on.
func Waiting(ctx context.Context, why string) {
	if tell, ok := ctx.Value(waitingKey{}).(func(why string)); ok {
		tell(why)
	}
}
