package layer

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// Tags tell whether what comes out of a blob is the layer that came out of it before, chunk by chunk, when its digest is
// not known to be right yet. The blob may be another by now, of somebody who would like his bytes to be taken for the
// layer's, so a checksum does not do. A chunk's tag is its GMAC under a random key that each layer has for itself. The
// key is in this process, or in the cache beside the tags, which its owner alone can read: without it nobody finds other
// bytes with the same tag. SHA-256 would need no key, and takes four times as long, or sixteen where the processor does
// not help: as long as inflating.
type tags struct {
	size int64 // bytes of the layer; set when it is known
	key  [tagLen]byte
	list [][tagLen]byte
	mac  cipher.AEAD
}

const (
	tagLen    = 16
	tagMagic  = "imgfs-t1"
	tagFooter = len(tagMagic) + 8 + 4
	// tagsKind is how the names of the directories begin that hold tags.
	tagsKind = "tags-"
)

// newTags returns tags with a key of their own, and none yet.
func newTags() (*tags, error) {
	t := &tags{}
	rand.Read(t.key[:]) // never fails
	return t, t.init()
}

// init sets mac.
func (t *tags) init() error {
	block, err := aes.NewCipher(t.key[:])
	if err == nil {
		t.mac, err = cipher.NewGCM(block)
	}
	return err
}

// of returns the tag of chunk n. A key meets each number once, as GMAC wants it.
func (t *tags) of(n int, chunk []byte) (tag [tagLen]byte) {
	var nonce [12]byte
	binary.LittleEndian.PutUint64(nonce[:], uint64(n))
	t.mac.Seal(tag[:0], nonce[:], nil, chunk)
	return tag
}

// add appends the tag of the next chunk.
func (t *tags) add(chunk []byte) {
	t.list = append(t.list, t.of(len(t.list), chunk))
	t.size += int64(len(chunk))
}

// match says whether chunk n is what it was.
func (t *tags) match(n int, chunk []byte) bool {
	if n >= len(t.list) {
		return false
	}
	tag := t.of(n, chunk)
	return subtle.ConstantTimeCompare(tag[:], t.list[n][:]) == 1
}

// encode is the tags' file of doc.go.
func (t *tags) encode(k key) []byte {
	b := make([]byte, 0, tagLen*(1+len(t.list))+tagFooter)
	b = append(b, t.key[:]...)
	for i := range t.list {
		b = append(b, t.list[i][:]...)
	}
	b = append(b, tagMagic...)
	b = binary.LittleEndian.AppendUint64(b, uint64(t.size))
	return binary.LittleEndian.AppendUint32(b, trailerSum(k, b))
}

var errNoTags = errors.New("it was cut short or edited")

func decodeTags(k key, b []byte) (*tags, error) {
	if len(b) < tagLen+tagFooter {
		return nil, errNoTags
	}
	foot := b[len(b)-tagFooter:]
	if string(foot[:len(tagMagic)]) != tagMagic || trailerSum(k, b[:len(b)-4]) != binary.LittleEndian.Uint32(b[len(b)-4:]) {
		return nil, errNoTags
	}
	t := &tags{size: int64(binary.LittleEndian.Uint64(foot[len(tagMagic):]))}
	chunks := int64(len(b)-tagFooter)/tagLen - 1
	if t.size < 0 || t.size > math.MaxInt64/2 || int64(len(b)) != tagLen*(1+chunks)+int64(tagFooter) || (t.size+chunkSize-1)/chunkSize != chunks {
		return nil, errNoTags
	}
	b = b[copy(t.key[:], b):]
	t.list = make([][tagLen]byte, chunks)
	for i := range t.list {
		b = b[copy(t.list[i][:], b):]
	}
	return t, t.init()
}

func tagsKey(k key) key { return key{tagsKind + k.kind, k.digest} }

func (c *Cache) saveTags(k key, t *tags) {
	tk := tagsKey(k)
	if err := c.writeFile(tk, t.encode(tk)); err != nil {
		c.log.Debug("keeping the tags of a layer", "path", tk.path(), "error", err)
	}
}

// loadTags returns what saveTags has kept; nil if there is nothing that is sound.
func (c *Cache) loadTags(k key) *tags {
	if c.dir == nil {
		return nil
	}
	tk := tagsKey(k)
	f, err := c.dir.OpenFile(tk.path(), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	var t *tags
	b, err := readRegular(f)
	if err == nil {
		t, err = decodeTags(tk, b)
	}
	if err != nil {
		c.log.Warn("discarding cache file", "path", tk.path(), "error", err)
		c.removeSame(tk.path(), f)
		return nil
	}
	return t
}

// dropTags throws tags away that sound bytes do not have.
func (c *Cache) dropTags(k key) {
	path := tagsKey(k).path()
	c.log.Warn("discarding cache file", "path", path, "error", fmt.Errorf("the layer's bytes are others"))
	_ = c.dir.Remove(path) // it is gone, or noticed again
}
