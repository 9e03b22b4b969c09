package imgsrc

import "context"

type commitKey struct{}

// WithCommit returns a context with which [Commit] asks may.
func WithCommit(ctx context.Context, may func() error) context.Context {
	return context.WithValue(ctx, commitKey{}, may)
}

// Commit is called by a source right before it makes a change that cannot be taken back, when there is nothing more to wait
// for. It fails if nobody wants the change any more, and waits until that is known: whoever asked for it may have been
// interrupted, and told so, and be about to ask again. Errors: that of the context, or why the work is given up.
func Commit(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if may, ok := ctx.Value(commitKey{}).(func() error); ok {
		return may()
	}
	return nil
}
