package layer

import (
	"errors"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// maxDamage is how many damaged blobs are remembered.
const maxDamage = 4096

// A damage is of which blobs the log has it that they are damaged. That is found in several ways (a layer cannot be decompressed,
// or indexed, or has another digest), and in each of them as often as somebody reads it. The zero value is ready.
type damage struct {
	mu   sync.Mutex
	said map[digest.Digest]bool
}

// IsNewDamage says whether the log is to be told that a blob is damaged. Then it is taken to have been.
func (c *Cache) IsNewDamage(blob digest.Digest) bool {
	d := &c.damage
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.said[blob] {
		return false
	}
	if d.said == nil || len(d.said) >= maxDamage {
		d.said = map[digest.Digest]bool{}
	}
	d.said[blob] = true
	return true
}

// logDamage logs that a layer is damaged, unless that has been done, and marks the error. What the source has found it has said
// itself, or leaves to whoever knows the image.
func (c *Cache) logDamage(doing string, blob digest.Digest, err error, args ...any) error {
	if imgsrc.IsLogged(err) || errors.As(err, new(*sourceError)) {
		return err
	}
	if c.IsNewDamage(blob) {
		c.log.Error(doing, append(args, "blob", blob, "error", err)...)
	}
	return imgsrc.Logged(err)
}
