package fs

import (
	"context"
	"time"
)

// Ops is what the controls do: the tree parses a write into lines and words, and hands it over. Its methods may be called
// from several goroutines at once.
type Ops interface {
	// Do carries out one write to a control: it checks all the lines, then runs them in their order, and returns when the
	// last one is done or the first has failed. When ctx ends first, Do returns ctx's error at once; the work stops unless
	// a Do with the same Key comes within two seconds, which then waits for the work that is under way. If it ends for a cause that is
	// syscall.ETIMEDOUT the caller will not come again: the work has failed, with that. Errors: the conditions of
	// package imgsrc, and the system's.
	Do(ctx context.Context, w Write) error

	// Record adds an event that is not an operation ("drop": half a line that was never completed); text is the error if
	// status ends in -error.
	Record(status, image, text string)

	// Events returns the mount's events as JSON lines, oldest first, and when the last was added. The bytes are not
	// changed afterwards.
	Events() (text []byte, changed time.Time)

	// Jobs returns the numbers of the jobs that run, wait, or have ended last, in rising order, and when one came or went
	// (zero if none ever did).
	Jobs() (numbers []uint32, changed time.Time)

	// Job returns a job as JSON, and when that text last changed; ok is false if there is no such job. With fresh the text
	// is of this moment or of one shortly before; without, it is the one that was last returned. The bytes are not changed
	// afterwards.
	Job(number uint32, fresh bool) (text []byte, changed time.Time, ok bool)

	// WriteJob carries out what was written to a job's file: each line must be the word cancel. It does not wait for the
	// job's end. The time of the job's text moves, whatever comes of it. Errors: imgsrc.ErrInvalid, ErrNotFound,
	// ErrUnsupported (a job that cannot be cancelled).
	WriteJob(number uint32, w Write) error

	// ShortNames returns the full references that a name may stand for, the first choice first, with a tag each. None if
	// it is no reference.
	ShortNames(name string) []string

	// CheckName returns a name as the source stores it that would take it for the image with this id: a registry if remote
	// is set, and only other sources if not. Without an id it is whichever source takes it. Errors: imgsrc.ErrInvalid if it
	// can be a name in none of them, imgsrc.ErrUnsupported if there is none.
	CheckName(id, name string, remote bool) (string, error)

	// LastError returns the text of the last failed operation on the image with this id, empty if there was none, and
	// when it changed. Without an id it is that of the last pull or load.
	LastError(id string) (text string, changed time.Time)
}

// Write is one write to a control file, or what ln, mv and rm ("link") or rmdir ("remove") ask for.
type Write struct {
	// Control is the file's name: "tags", "push", "pull", "load"; or "link", with lines as for tags, or "remove", without.
	Control string
	Image   string     // the id of the image whose control it is; empty for those of the mountpoint
	Lines   [][]string // the words of each line; blank lines and comments are left out
	Key     string     // equal for equal writes (file, user, bytes), and only for those; empty: nothing is equal
	UID     uint32     // the writer
	PID     uint32     // the writer; 0 if it cannot be seen from here
	Remote  bool       // of a link: its name is one in a registry
	Err     error      // why Lines could not be made out: Do records it and fails with it
}
