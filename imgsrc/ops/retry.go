package ops

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/docker/distribution/registry/api/errcode"
	"go.podman.io/image/v5/docker"

	"github.com/imgfs/imgfs/imgsrc/proxy"
)

// maxAttempts is how often a push to a registry or a pull from one is tried in a row without one more blob arriving, and
// firstBackoff how long it waits after the first time; the time doubles. Layers that have arrived do not move again.
const (
	maxAttempts  = 4
	firstBackoff = time.Second
)

// attempt calls copy again while its failure is one that may go away. A registry
// that is not there from the beginning is not waited for.
func (o *Ops) attempt(ctx context.Context, t *task, watch *watchdog, copy func() error) error {
	delay, row, blobs := o.backoff, 0, 0
	for n := 1; ; n++ {
		err := copy()
		if err == nil || ctx.Err() != nil || !temporary(err, n > 1 || watch.reached.Load()) {
			return err
		}
		if row++; t.finished() > blobs {
			delay, row, blobs = o.backoff, 1, t.finished()
		}
		if row >= maxAttempts || row > 1 && errors.Is(err, docker.ErrTooManyRequests) { // which the library has repeated itself
			return fmt.Errorf("%w (tried %d times)", err, n)
		}
		t.retry(err)
		o.log.Debug("trying again", "attempt", n, "error", redact(err.Error()))
		resume := watch.pause()
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		resume()
		delay *= 2
	}
}

// answered is how the library's errors quote the status of an answer that it did not expect.
var answered = regexp.MustCompile(`(?:StatusCode: |HTTP status: |unexpected status code )(\d{3})\b`)

// temporary says whether the same may succeed a little later: the registry is busy, or a connection broke. begun says that
// the registry was there a moment ago.
func temporary(err error, begun bool) bool {
	var local *sourceError
	if errors.As(err, &local) || proxy.Unauthorized(err) {
		return false
	}
	if strings.Contains(err.Error(), syscall.ENOSPC.Error()) {
		return false // whatever broke because of it: a store unpacks in another process, of which only the text comes back
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return begun
	case errors.Is(err, docker.ErrTooManyRequests), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return true
	}
	status := statusOf(err)
	return status == 429 || status >= 500 && status != 501
}

// statusOf returns the status of the answer that an error of the library's tells of; 0 if it tells of none.
func statusOf(err error) int {
	status := 0
	var unexpected docker.UnexpectedHTTPStatusError
	var code errcode.ErrorCoder
	var several errcode.Errors
	if errors.As(err, &several) && len(several) > 0 {
		errors.As(several[0], &code)
	}
	switch {
	case errors.As(err, &unexpected):
		status = unexpected.StatusCode
	case code != nil || errors.As(err, &code):
		if status = code.ErrorCode().Descriptor().HTTPStatusCode; code.ErrorCode() == errcode.ErrorCodeUnknown {
			status = 0 // a code that the library does not know; its status is not told
		}
	}
	if m := answered.FindStringSubmatch(err.Error()); m != nil && status == 0 {
		status, _ = strconv.Atoi(m[1])
	}
	return status
}
