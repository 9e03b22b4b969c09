package registry

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/flight"
)

// inTime does work that somebody waits for, who reads a document or follows a name, once for all who want it: in the time that a
// document has, with all attempts; longer as long as a config comes. A failure is then the answer for a moment (flight.Failures), also for those who only come later:
// the kernel lets one of them into a directory at a time. That a caller leaves is no failure, and the work goes on.
func inTime[T any](ctx context.Context, s *Source, key any, work func(context.Context) (T, error)) (T, error) {
	var none T
	if err := s.failures.Of(key); err != nil {
		return none, err
	}
	return flight.Do(ctx, s.flights, key, func(ctx context.Context) (T, error) {
		if err := s.failures.Of(key); err != nil { // since the caller looked
			return none, err
		}
		begun := time.Now()
		limited, stop := newComing(ctx, s.client.limits.document)
		defer stop()
		v, err := work(limited)
		if ctx.Err() != nil {
			return v, err
		}
		if err != nil && limited.Err() != nil && !errors.Is(err, syscall.ETIMEDOUT) {
			err = &failure{text: fmt.Sprintf("asking %s: %s", s.client.host, errLate), condition: syscall.ETIMEDOUT}
		}
		if !errors.Is(err, imgsrc.ErrNotFound) && !errors.Is(err, imgsrc.ErrDenied) { // which are answers, and may be others after a login
			s.failures.Put(key, err, begun)
		}
		return v, err
	})
}
