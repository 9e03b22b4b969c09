package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/userns"
)

// sentConditions are what is found in an error on either side of a socket. Their order is what is sent.
var sentConditions = []error{
	imgsrc.ErrNotFound, imgsrc.ErrAbsent, imgsrc.ErrDamaged, imgsrc.ErrInvalid, imgsrc.ErrUnsupported, imgsrc.ErrReadOnly,
	imgsrc.ErrDenied, imgsrc.ErrExists, imgsrc.ErrInUse, imgsrc.ErrNoSource,
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
