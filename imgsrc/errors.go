package imgsrc

import (
	"errors"
	"slices"
)

// The conditions that sources and operations report. They are wrapped in errors that say what was being done, to what,
// and what to do about it; callers test with errors.Is. Conditions that the operating system has a name for (no space,
// no permission, connection refused) stay wrapped as syscall.Errno.
var (
	// ErrNotFound: the image, the name or the source is not there, or not there any more.
	ErrNotFound = errors.New("not found")
	// ErrAbsent: the image is there, and has no such thing.
	ErrAbsent = errors.New("absent")
	// ErrDamaged: the bytes are not what a digest, a size or a format promises.
	ErrDamaged = errors.New("damaged")
	// ErrInvalid: not a reference, not a line, not a destination.
	ErrInvalid = errors.New("invalid")
	// ErrUnsupported: this source or this destination cannot do that.
	ErrUnsupported = errors.New("not supported")
	// ErrReadOnly: the mount or the source does not take writes.
	ErrReadOnly = errors.New("read-only")
	// ErrDenied: a registry or a policy refused.
	ErrDenied = errors.New("denied")
	// ErrExists: what was to be made is there already.
	ErrExists = errors.New("already exists")
	// ErrInUse: a container uses the image.
	ErrInUse = errors.New("in use")
	// ErrLocked: another program has locked the source for longer than could be waited.
	ErrLocked = errors.New("locked")
	// ErrNoSource: this is not a source of the kind that was asked for, or there is nothing there.
	ErrNoSource = errors.New("no such source")
)

// Logged marks an error that is in the log, with what is damaged and how: whoever meets it after that says nothing more. One
// defect of a layer is met in many files.
func Logged(err error) error { return &loggedError{err} }

// IsLogged says whether an error is one that is in the log already.
func IsLogged(err error) bool {
	var l *loggedError
	return errors.As(err, &l)
}

type loggedError struct{ error }

func (e *loggedError) Unwrap() error { return e.error }

// DamageOf returns the innermost error that says what is damaged, without what was being done: the same for all who meet it.
func DamageOf(err error) error {
	for {
		inner := func(err error) bool { return err != ErrDamaged && errors.Is(err, ErrDamaged) } //nolint:errorlint // itself
		var next []error
		switch e := err.(type) { //nolint:errorlint // it is unwrapped step by step
		case interface{ Unwrap() error }:
			next = []error{e.Unwrap()}
		case interface{ Unwrap() []error }:
			next = e.Unwrap()
		}
		i := slices.IndexFunc(next, inner)
		if i < 0 {
			return err
		}
		err = next[i]
	}
}

// Of returns err as an error of a condition, whose own words are not in its text: err says it better. errors.Is finds both.
func Of(condition, err error) error { return &ofError{err, condition} }

type ofError struct {
	error
	condition error
}

func (e *ofError) Unwrap() []error { return []error{e.error, e.condition} }
