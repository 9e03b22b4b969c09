package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// The claims' file system: dirs directories of files files each, which never change, and below live/ a directory and a file that change when
// the client says so. Node ids are places in this arrangement; there is no other state.
const (
	dirs, files = 50, 40
	fileSize    = 4000

	nodeRoot  = 1
	nodeLive  = 2
	nodeText  = 3
	firstDir  = 10
	firstFile = 1000
	firstNew  = 1 << 32 // the entries of the live directory

	hour = 3600 // seconds
)

// Ways to answer, words of the argument of -serve.
const (
	wayOpen     = "open"     // OPEN is answered with a handle instead of ENOSYS
	wayOpenDir  = "opendir"  // OPENDIR likewise
	wayCacheDir = "cachedir" // with opendir: and with FOPEN_CACHE_DIR
	wayNoData   = "nodata"   // GETXATTR is answered with ENODATA instead of EOPNOTSUPP
	wayStill    = "still"    // the mtime of what is live never moves
)

type claimFS struct {
	fuse.RawFileSystem
	way      map[string]bool
	requests atomic.Int64

	mu    sync.Mutex
	names []string // in live/
	text  string   // of the live file
	dirAt time.Time
	txtAt time.Time
}

// serveClaims serves at mountpoint until it is unmounted. Each line of standard input is an order, answered with a line: "count"
// (the requests since the last count), "add NAME" and "remove NAME" in live/, "text TEXT" for the live file.
func serveClaims(ways, mountpoint string) error {
	c := &claimFS{RawFileSystem: fuse.NewDefaultRawFileSystem(), way: map[string]bool{}, text: "first"}
	for w := range strings.SplitSeq(ways, ",") {
		c.way[w] = true
	}
	c.dirAt, c.txtAt = time.Unix(1, 0), time.Unix(1, 0)
	server, err := fuse.NewServer(c, mountpoint, &fuse.MountOptions{
		DirectMountStrict: true, FsName: "claims", MaxWrite: 1 << 20, MaxBackground: 64,
	})
	if err != nil {
		return fmt.Errorf("mounting the claims' file system: %w", err)
	}
	go server.Serve()
	if err := server.WaitMount(); err != nil {
		return err
	}
	fmt.Println("ready")
	for orders := bufio.NewScanner(os.Stdin); orders.Scan(); {
		fmt.Println(c.order(orders.Text()))
	}
	return server.Unmount() // the client is gone
}

func (c *claimFS) order(line string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "count":
		return strconv.FormatInt(c.requests.Swap(0), 10)
	case "add":
		c.names = append(c.names, rest)
		c.move(&c.dirAt)
	case "remove":
		kept := c.names[:0:0]
		for _, n := range c.names {
			if n != rest {
				kept = append(kept, n)
			}
		}
		c.names = kept
		c.move(&c.dirAt)
	case "text":
		c.text = rest
		c.move(&c.txtAt)
	}
	return "done"
}

func (c *claimFS) move(t *time.Time) {
	if !c.way[wayStill] {
		*t = t.Add(time.Millisecond)
	}
}

func (c *claimFS) attr(node uint64, a *fuse.Attr) (valid uint64) {
	a.Ino, a.Nlink, a.Mode, valid = node, 1, syscall.S_IFREG|0o444, hour
	at := time.Unix(1, 0)
	switch {
	case node == nodeLive:
		a.Mode, valid, at = syscall.S_IFDIR|0o555, 0, c.dirAt
	case node == nodeText:
		a.Size, valid, at = uint64(len(c.text)), 0, c.txtAt
	case node < firstFile:
		a.Mode = syscall.S_IFDIR | 0o555
	case node < firstNew:
		a.Size = fileSize
	}
	a.SetTimes(nil, &at, &at)
	return valid
}

func (c *claimFS) fill(node uint64, out *fuse.EntryOut) {
	out.NodeId, out.Generation = node, 1
	out.AttrValid = c.attr(node, &out.Attr)
	out.EntryValid = hour
	if node >= firstNew {
		out.EntryValid = 0
	}
}

func (c *claimFS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	c.requests.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	for node, n := range c.children(h.NodeId) {
		if n == name {
			c.fill(node, out)
			return fuse.OK
		}
	}
	return fuse.ENOENT
}

// children goes through a directory's entries in their order.
func (c *claimFS) children(dir uint64) func(yield func(uint64, string) bool) {
	return func(yield func(uint64, string) bool) {
		switch dir {
		case nodeRoot:
			if !yield(nodeLive, "live") || !yield(nodeText, "text") {
				return
			}
			for i := range uint64(dirs) {
				if !yield(firstDir+i, fmt.Sprintf("d%02d", i)) {
					return
				}
			}
		case nodeLive:
			for i, n := range c.names {
				if !yield(firstNew+uint64(i), n) {
					return
				}
			}
		default:
			for i := range uint64(files) {
				if !yield(firstFile+(dir-firstDir)*files+i, fmt.Sprintf("f%02d", i)) {
					return
				}
			}
		}
	}
}

func (c *claimFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	c.requests.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	out.AttrValid = c.attr(in.NodeId, &out.Attr)
	return fuse.OK
}

func (c *claimFS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	c.requests.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	at := uint64(0)
	for node, name := range c.children(in.NodeId) {
		if at++; at <= in.Offset {
			continue
		}
		var a fuse.Attr
		c.attr(node, &a)
		entry := out.AddDirLookupEntry(fuse.DirEntry{Name: name, Ino: node, Mode: a.Mode, Off: at})
		if entry == nil {
			break
		}
		c.fill(node, entry)
	}
	return fuse.OK
}

func (c *claimFS) Read(_ <-chan struct{}, in *fuse.ReadIn, _ []byte) (fuse.ReadResult, fuse.Status) {
	c.requests.Add(1)
	data := strings.Repeat("x", fileSize)
	if in.NodeId == nodeText {
		c.mu.Lock()
		data = c.text
		c.mu.Unlock()
	}
	from := min(in.Offset, uint64(len(data)))
	return fuse.ReadResultData([]byte(data[from:min(from+uint64(in.Size), uint64(len(data)))])), fuse.OK
}

func (c *claimFS) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	c.requests.Add(1)
	if !c.way[wayOpen] {
		return fuse.ENOSYS
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

func (c *claimFS) OpenDir(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	c.requests.Add(1)
	if !c.way[wayOpenDir] {
		return fuse.ENOSYS
	}
	if c.way[wayCacheDir] {
		out.OpenFlags = fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	}
	return fuse.OK
}

func (c *claimFS) GetXAttr(_ <-chan struct{}, _ *fuse.InHeader, _ string, _ []byte) (uint32, fuse.Status) {
	c.requests.Add(1)
	if c.way[wayNoData] {
		return 0, fuse.ENOATTR
	}
	return 0, fuse.Status(syscall.EOPNOTSUPP)
}

func (c *claimFS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status {
	c.requests.Add(1)
	if !c.way[wayOpen] {
		return fuse.ENOSYS
	}
	return fuse.OK
}

func (c *claimFS) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }
func (c *claimFS) Release(<-chan struct{}, *fuse.ReleaseIn)           { c.requests.Add(1) }
func (c *claimFS) ReleaseDir(*fuse.ReleaseIn)                         { c.requests.Add(1) }
func (c *claimFS) StatFs(<-chan struct{}, *fuse.InHeader, *fuse.StatfsOut) fuse.Status {
	return fuse.OK
}
