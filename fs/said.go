package fs

import (
	"regexp"
	"sync"
	"syscall"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
)

// The kernel reads a page that could not be read once more, and programs try again: what fails for one reader several times in a
// moment is one line in the log.

const (
	// saidFor is how long the same failure of the same file is not said again.
	saidFor = time.Minute
	// maxSaid is how many failures are remembered.
	maxSaid = 4096
)

// failure is something that failed, as far as it makes a line in the log.
type failure struct {
	doing string
	node  node
	errno syscall.Errno
}

// said are the failures that are in the log, and when they were. The zero value is ready.
type said struct {
	mu      sync.Mutex
	at      map[failure]time.Time
	damaged map[defect]bool
}

// defect is something that is damaged, and stays so, in whichever file it is met: of an image, or of what has a digest, which
// several images and oci/ may have.
type defect struct{ image, what string }

var anyDigest = regexp.MustCompile(`[0-9a-f]{64}`)

// isNewDamage says whether it is to be said that something in an image is damaged. Then it is taken to be, for good.
func (s *said) isNewDamage(image string, err error) bool {
	is := defect{image, imgsrc.DamageOf(err).Error()}
	if anyDigest.MatchString(is.what) {
		is.image = ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.damaged[is] {
		return false
	}
	if s.damaged == nil || len(s.damaged) >= maxSaid {
		s.damaged = map[defect]bool{}
	}
	s.damaged[is] = true
	return true
}

// isNew says whether a failure is to be said. Then it is taken to be.
func (s *said) isNew(is failure, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, ok := s.at[is]; ok && now.Sub(at) < saidFor {
		return false
	}
	if s.at == nil || len(s.at) >= maxSaid {
		s.at = map[failure]time.Time{}
	}
	s.at[is] = now
	return true
}
