package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"syscall"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/userns"
)

// sentConditions are what is found in an error on either side of a socket. Their order is what is sent.
var sentConditions = []error{
	imgsrc.ErrNotFound, imgsrc.ErrAbsent, imgsrc.ErrDamaged, imgsrc.ErrInvalid, imgsrc.ErrUnsupported, imgsrc.ErrReadOnly,
	imgsrc.ErrDenied, imgsrc.ErrExists, imgsrc.ErrInUse, imgsrc.ErrLocked, imgsrc.ErrNoSource,
	context.Canceled, context.DeadlineExceeded, fs.ErrClosed, errKeeperEnded,
}

// A sentError is an error as it is sent: its text, and which conditions it is. It implements error so as to be found again.
type sentError struct {
	Text       string
	Conditions []int         // in sentConditions
	Errno      syscall.Errno // 0: none
}

// sent returns an error as it is sent; nil for nil.
func sent(err error) *sentError {
	if err == nil {
		return nil
	}
	s := &sentError{Text: err.Error()}
	for i, c := range sentConditions {
		if errors.Is(err, c) {
			s.Conditions = append(s.Conditions, i)
		}
	}
	errors.As(err, &s.Errno)
	return s
}

// error returns what was sent.
func (s *sentError) error() error {
	if s == nil {
		return nil
	}
	return s
}

func (s *sentError) Error() string { return s.Text }

// Is implements what errors.Is asks for.
func (s *sentError) Is(target error) bool {
	at := slices.IndexFunc(sentConditions, func(c error) bool { return c == target })
	return at >= 0 && slices.Contains(s.Conditions, at)
}

// Unwrap returns the system's error.
func (s *sentError) Unwrap() error {
	if s.Errno == 0 {
		return nil
	}
	return s.Errno
}

// denied says of an error of the keeper's, if it is that it may not do something, what may be the reason.
func (k *keeper) denied(err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	if alone := k.alone(); alone != nil {
		return fmt.Errorf("%w: %w", err, alone)
	}
	return fmt.Errorf("%w, also for root of a user namespace; that is so where /etc/subuid has other ids than the store was made with, and %s",
		err, userns.AppArmorHint)
}

// insufficientIDs is what the library says of a file whose owner the user namespace does not have.
var insufficientIDs = regexp.MustCompile(`insufficient UIDs or GIDs available in (?:the )?user namespace \(requested (\d+:\d+) for ([^)]*)\)`)

// foreignIDs says of an error of receiving an image, if it is that the image has files of ids that the user namespace does not
// have, in plain words. alone is why it has the user's own only; nil: it has more.
func foreignIDs(err, alone error) error {
	if err == nil {
		return nil
	}
	found := insufficientIDs.FindStringSubmatch(err.Error())
	if found == nil {
		return err
	}
	why := "there are too few subordinate ids here: add to the user's line in /etc/subuid and /etc/subgid, run `podman system migrate`, and mount again"
	if alone != nil {
		why = alone.Error()
	}
	return imgsrc.Of(imgsrc.ErrUnsupported, fmt.Errorf("%s of the image belongs to user and group %s: %s", found[2], found[1], why))
}
