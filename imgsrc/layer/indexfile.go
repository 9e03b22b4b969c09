package layer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/cachefile"
)

// The index file of doc.go.
const (
	indexKind   = "index"
	indexMagic  = "imgfs-i2"
	entLen      = 4 + 4 + 4 + 1
	inodeLen    = 3*8 + 7*4
	indexHeader = len(indexMagic) + 4*4
)

func indexKey(k imgsrc.FilesKey) key {
	d := k.Digest
	if k.Place != "" {
		d = digest.FromString(k.Digest.String() + " " + k.Place)
	}
	return key{indexKind + "-" + k.Form, d}
}

func (x *Index) encode(k key) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, indexHeader+len(x.ents)*entLen+len(x.inodes)*inodeLen+len(x.arena)+4)
	b = append(b, indexMagic...)
	for _, n := range []int{len(x.ents), len(x.inodes), len(x.arena), x.skipped} {
		b = le.AppendUint32(b, uint32(n))
	}
	for i := range x.ents {
		e := &x.ents[i]
		b = le.AppendUint32(b, e.name)
		b = le.AppendUint32(b, e.inode)
		b = le.AppendUint32(b, e.parent)
		b = append(b, e.nameLen)
	}
	for i := range x.inodes {
		n := &x.inodes[i]
		b = le.AppendUint64(b, uint64(n.sec))
		b = le.AppendUint64(b, uint64(n.size))
		b = le.AppendUint64(b, n.where)
		for _, v := range [...]uint32{n.nsec, n.uid, n.gid, n.mode, n.extra, n.first, n.count} {
			b = le.AppendUint32(b, v)
		}
	}
	b = append(b, x.arena...)
	return le.AppendUint32(b, trailerSum(k, b))
}

var errNoIndex = errors.New("it was cut short or edited")

// decodeIndex takes what encode has made. The checksum tells damage; everything that is followed is in bounds.
func decodeIndex(k key, b []byte) (*Index, error) {
	le := binary.LittleEndian
	if len(b) < indexHeader+4 || string(b[:len(indexMagic)]) != indexMagic {
		return nil, errNoIndex
	}
	if trailerSum(k, b[:len(b)-4]) != le.Uint32(b[len(b)-4:]) {
		return nil, errNoIndex
	}
	var n [4]uint64
	for i := range n {
		n[i] = uint64(le.Uint32(b[len(indexMagic)+4*i:]))
	}
	b = b[indexHeader : len(b)-4]
	if n[0] == 0 || n[1] == 0 || n[0]*uint64(entLen)+n[1]*uint64(inodeLen)+n[2] != uint64(len(b)) {
		return nil, errNoIndex
	}
	x := &Index{ents: make([]ent, n[0]), inodes: make([]inode, n[1]), skipped: int(n[3])}
	for i := range x.ents {
		x.ents[i] = ent{name: le.Uint32(b), inode: le.Uint32(b[4:]), parent: le.Uint32(b[8:]), nameLen: b[12]}
		b = b[entLen:]
	}
	for i := range x.inodes {
		x.inodes[i] = inode{
			sec: int64(le.Uint64(b)), size: int64(le.Uint64(b[8:])), where: le.Uint64(b[16:]),
			nsec: le.Uint32(b[24:]), uid: le.Uint32(b[28:]), gid: le.Uint32(b[32:]), mode: le.Uint32(b[36:]),
			extra: le.Uint32(b[40:]), first: le.Uint32(b[44:]), count: le.Uint32(b[48:]),
		}
		b = b[inodeLen:]
	}
	x.arena = string(b)
	for i := range x.ents {
		e := &x.ents[i]
		if uint64(e.name)+uint64(e.nameLen) > n[2] || uint64(e.inode) >= n[1] || uint64(e.parent) >= n[0] {
			return nil, errNoIndex
		}
	}
	for i := range x.inodes {
		in := &x.inodes[i]
		if uint64(in.extra) > n[2] || in.isDir() && uint64(in.first)+uint64(in.count) > n[0] || !in.isDir() && uint64(in.first) >= n[0] {
			return nil, errNoIndex
		}
	}
	x.notePlain()
	return x, nil
}

// loadIndex reads an index file; nil if there is none that is sound.
func (c *Cache) loadIndex(files imgsrc.FilesKey) *Index {
	if c.dir == nil {
		return nil
	}
	k := indexKey(files)
	f, err := c.dir.OpenFile(k.path(), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	x, err := c.readIndex(f, k)
	if c.ctx.Err() != nil {
		return nil
	}
	if err != nil {
		c.log.Warn("discarding cache file", "path", k.path(), "error", err)
		c.removeSame(k.path(), f)
		return nil
	}
	now := time.Now() // when it was last used
	_ = c.dir.Chtimes(k.path(), now, now)
	x.digest = files.Digest
	return x
}

// readIndex decodes an index file, which takes twice as much memory as the index: large ones one at a time. It waits for
// no index that is being made.
func (c *Cache) readIndex(f *os.File, k key) (*Index, error) {
	places := c.loading
	if fi, err := f.Stat(); err == nil && fi.Size() > largeBuild {
		places = c.loadingLarge
	}
	if err := take(c.ctx, places); err != nil {
		return nil, err
	}
	defer func() { <-places }()
	b, err := readRegular(f)
	if err != nil {
		return nil, err
	}
	return decodeIndex(k, b)
}

func readRegular(f *os.File) ([]byte, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxArena+MaxEntries*int64(entLen+inodeLen) {
		return nil, errNoIndex
	}
	b := make([]byte, fi.Size())
	_, err = io.ReadFull(f, b)
	return b, err
}

// saveIndex writes an index file. Where that is not possible there is none: it is made again.
func (c *Cache) saveIndex(k key, x *Index) {
	if c.dir == nil {
		return
	}
	b := x.encode(k)
	if err := c.writeFile(k, b); err != nil {
		c.log.Debug("keeping the index of a layer", "path", k.path(), "error", err)
		return
	}
	c.wrote(int64(len(b)))
}

// writeFile makes a small file of the cache, if nobody else is doing that at the moment.
func (c *Cache) writeFile(k key, b []byte) (err error) {
	if err := c.dir.Mkdir(partDir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	f, err := cachefile.TryLock(c.dir, k.partPath(), os.O_RDWR|os.O_CREATE)
	if errors.Is(err, cachefile.ErrBusy) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			c.removeSame(k.partPath(), f)
		}
		f.Close()
	}()
	if _, err := c.room(f); err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		return fmt.Errorf("writing %d bytes: %w", len(b), err)
	}
	return c.rename(f, k)
}
