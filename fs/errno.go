package fs

import (
	"context"
	"errors"
	iofs "io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/imgfs/imgfs/imgsrc"
)

// conditions are tried in this order; the first that errors.Is finds decides. What the operating system said comes after
// the conditions of imgsrc, because those are wrapped around it by somebody who knew more.
var conditions = []struct {
	err   error
	errno syscall.Errno
}{
	{imgsrc.ErrAbsent, syscall.ENOENT},
	{imgsrc.ErrNotFound, syscall.ENOENT},
	{imgsrc.ErrInvalid, syscall.EINVAL},
	{imgsrc.ErrUnsupported, syscall.ENOTSUP},
	{imgsrc.ErrReadOnly, syscall.EROFS},
	{imgsrc.ErrDenied, syscall.EACCES},
	{imgsrc.ErrExists, syscall.EEXIST},
	{imgsrc.ErrInUse, syscall.EBUSY},
	{imgsrc.ErrDamaged, syscall.EIO},
	{syscall.ECANCELED, syscall.ECANCELED}, // and not EINTR, which programs take for "once more"
	{context.Canceled, syscall.EINTR},
	{context.DeadlineExceeded, syscall.ETIMEDOUT},
	{os.ErrDeadlineExceeded, syscall.ETIMEDOUT},
	{syscall.EROFS, syscall.EROFS},
	{syscall.ENOSPC, syscall.ENOSPC},
	{syscall.EDQUOT, syscall.ENOSPC},
	{syscall.ECONNREFUSED, syscall.ECONNREFUSED},
	{syscall.ETIMEDOUT, syscall.ETIMEDOUT},
	{syscall.EHOSTUNREACH, syscall.EHOSTUNREACH},
	{syscall.ENETUNREACH, syscall.EHOSTUNREACH},
	{iofs.ErrPermission, syscall.EACCES},
	{iofs.ErrNotExist, syscall.ENOENT},
	{iofs.ErrExist, syscall.EEXIST},
}

// errnoOf is the one place where an error becomes what the reader or writer sees. What has no better name is EIO: the
// text is in the log and, for a control, in the image's error file.
func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	if bare, ok := err.(syscall.Errno); ok { //nolint:errorlint // a view's own answer, not a condition somewhere below
		return bare
	}
	for _, c := range conditions {
		if errors.Is(err, c.err) {
			return c.errno
		}
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return syscall.EHOSTUNREACH
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return syscall.ETIMEDOUT
	}
	return syscall.EIO
}

// fail logs err, unless that was done a moment ago (see said), and returns its status. What is absent or interrupted is no
// failure; an unread is in the log already, and so is what imgsrc.IsLogged knows. What is damaged in an image is said once,
// however many files it is met in.
func (f *FS) fail(doing string, n node, err error) fuse.Status {
	errno := errnoOf(err)
	switch {
	case errno == 0, errno == syscall.ENOENT, errno == syscall.EINTR, isUnread(err), imgsrc.IsLogged(err):
	case errors.Is(err, imgsrc.ErrDamaged) && !f.said.isNewDamage(f.imageName(n), err):
	case !errors.Is(err, imgsrc.ErrDamaged) && !f.said.isNew(failure{doing, n, errno}, time.Now()):
	default:
		f.log.Warn(doing, "image", f.imageName(n), "errno", errno.Error(), "error", err)
	}
	return fuse.Status(errno)
}

// recovered is deferred by goroutines of the tree's own: a panic there costs their work and not the mount.
func (f *FS) recovered(doing string) {
	if r := recover(); r != nil {
		f.log.Error("panic", "doing", doing, "reason", r)
	}
}
