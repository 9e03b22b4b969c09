package layer

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc/cachefile"
)

const (
	magic     = "imgfs-d1"
	footerLen = len(magic) + 8 + 4
)

// A store is a layer's uncompressed bytes, chunk by chunk comparable with the checksums of the pass that made them, which
// tell damage of the file.
type store struct {
	pass
	file   *os.File // nil if there is only replay
	replay *replay
	// growing is set while file is being written. It is then somebody else's to close.
	growing *growing
	refs    int // guarded by Cache.mu

	mu       sync.Mutex
	identity cachefile.Identity // of file, before the first chunk in verified was read
	verified []uint64           // one bit a chunk: has been compared, and need not be again while the identity stays
}

// A chunkError is a chunk that is not what the pass had put out.
type chunkError struct{ n int64 }

func (e *chunkError) Error() string {
	return fmt.Sprintf("the MiB at offset %d does not match its checksum", e.n*chunkSize)
}

func newStore(f *os.File, p *pass) (*store, error) {
	id, err := cachefile.Identify(f)
	if err != nil {
		return nil, err
	}
	return &store{pass: *p, file: f, identity: id, verified: make([]uint64, (len(p.sums)+63)/64)}, nil
}

// openStore opens k's file in the cache and notes that it was used. It returns nil if there is none that is sound.
func (c *Cache) openStore(k key) *store {
	f, err := c.dir.OpenFile(k.path(), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	// Who evicts at this moment has the file for himself: reading goes on all the same, from a file without a name.
	_ = cachefile.Flock(f, unix.LOCK_SH|unix.LOCK_NB)
	// On a read-only file system nothing is evicted either.
	now := time.Now()
	_ = c.dir.Chtimes(k.path(), now, now)
	p, err := readTrailer(f, k)
	if err == nil {
		var s *store
		if s, err = newStore(f, p); err == nil {
			return s
		}
	}
	c.log.Warn("discarding cache file", "path", k.path(), "error", err)
	c.removeSame(k.path(), f)
	f.Close()
	return nil
}

// readTrailer reads what trailer has written behind a layer's bytes.
func readTrailer(f *os.File, k key) (*pass, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() < int64(footerLen) {
		return nil, fmt.Errorf("it is not a cache file")
	}
	footer := make([]byte, footerLen)
	if _, err := f.ReadAt(footer, fi.Size()-int64(footerLen)); err != nil {
		return nil, err
	}
	size := int64(binary.LittleEndian.Uint64(footer[len(magic):]))
	if string(footer[:len(magic)]) != magic || size < 0 || size > math.MaxInt64/2 || size > fi.Size() {
		return nil, fmt.Errorf("it was cut short or edited")
	}
	chunks := (size + chunkSize - 1) / chunkSize
	if size+4*chunks+int64(footerLen) != fi.Size() {
		return nil, fmt.Errorf("it was cut short or edited")
	}
	b := make([]byte, fi.Size()-size)
	if _, err := f.ReadAt(b, size); err != nil {
		return nil, err
	}
	if trailerSum(k, b[:len(b)-4]) != binary.LittleEndian.Uint32(b[len(b)-4:]) {
		return nil, fmt.Errorf("it was edited, or has another's name")
	}
	p := &pass{size: size, sums: make([]uint32, chunks)}
	for i := range p.sums {
		p.sums[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	return p, nil
}

func (s *store) close() {
	if s.file != nil && s.growing == nil {
		s.file.Close()
	}
	if s.replay != nil {
		s.replay.close()
	}
}

// readAt reads as imgsrc.Content does. Error: *chunkError for bytes that do not match their checksum.
func (s *store) readAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off >= s.size {
		return 0, io.EOF
	}
	var eof error
	if rest := s.size - off; int64(len(p)) > rest {
		p, eof = p[:rest], io.EOF
	}
	if s.readVerified(p, off) {
		return len(p), eof
	}
	buf := chunkBuffers.Get().(*[chunkSize]byte)
	defer chunkBuffers.Put(buf)
	for n := 0; n < len(p); {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		at := off + int64(n)
		chunk, err := s.chunk(ctx, at/chunkSize, buf)
		if err != nil {
			return n, err
		}
		n += copy(p[n:], chunk[at%chunkSize:])
	}
	return len(p), eof
}

var chunkBuffers = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// readVerified reads p if all its chunks have been compared already and the file has not been touched since. It returns
// false if p must be read otherwise.
func (s *store) readVerified(p []byte, off int64) bool {
	if s.file == nil || s.growing != nil || len(p) == 0 {
		return len(p) == 0
	}
	s.mu.Lock()
	was := s.identity
	for n := off / chunkSize; n <= (off+int64(len(p))-1)/chunkSize; n++ {
		if s.verified[n/64]&(1<<(n%64)) == 0 {
			s.mu.Unlock()
			return false
		}
	}
	s.mu.Unlock()
	if _, err := s.file.ReadAt(p, off); err != nil {
		return false
	}
	now, err := cachefile.Identify(s.file)
	if err != nil || now == was {
		return err == nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.identity == was {
		s.identity = now
		clear(s.verified)
	}
	return false
}

// sum returns the checksum of chunk n, when it is there.
func (s *store) sum(ctx context.Context, n int64) (uint32, error) {
	if s.growing != nil {
		return s.growing.wait(ctx, n)
	}
	return s.sums[n], nil
}

// chunk reads chunk n into buf, and compares it.
func (s *store) chunk(ctx context.Context, n int64, buf *[chunkSize]byte) ([]byte, error) {
	b := buf[:min(chunkSize, s.size-n*chunkSize)]
	if s.replay != nil {
		if err := s.replay.chunk(ctx, n, b); err != nil {
			return nil, err
		}
		return b, nil
	}
	want, err := s.sum(ctx, n)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	was := s.identity
	s.mu.Unlock()
	if m, err := s.file.ReadAt(b, n*chunkSize); err != nil && err != io.EOF {
		return nil, err
	} else if m < len(b) || crc32.Checksum(b, castagnoli) != want {
		return nil, &chunkError{n}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.identity == was && s.growing == nil {
		s.verified[n/64] |= 1 << (n % 64)
	}
	return b, nil
}
