package mount

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestMain lets the test binary be the serving process too: a process must not read its own mount.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		os.Exit(serveMain(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// serveMain serves an oneFile at args' mountpoint, in the background or not, as cmd/imgfs does with the real tree.
func serveMain(args []string) int {
	parent := FindParent()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	set := flag.NewFlagSet("serve", flag.ContinueOnError)
	foreground := set.Bool("foreground", false, "")
	words := set.String("o", "", "")
	hang := set.String("hang", "", "no listing is ever answered: interruptible or deaf")
	die := set.Bool("die", false, "the process ends before it mounts")
	more := set.Int("more", 0, "how many sources there are beside the first")
	ending := set.String("ending", "", "a file for why the mount ends")
	level := set.String("log-level", "error", "")
	if set.Parse(args) != nil {
		return 2
	}
	err := func() error {
		point, err := Check(set.Arg(0))
		if err != nil {
			return err
		}
		if parent == nil && !*foreground {
			return Daemonise(ctx, nil, "dir")
		}
		if *die {
			os.Exit(9)
		}
		o := Options{Point: point, Sources: []string{"test:a,b"}}
		for i := range *more {
			o.Sources = append(o.Sources, fmt.Sprintf("test:%0100d", i))
		}
		var min slog.Level
		if err := min.UnmarshalText([]byte(*level)); err != nil {
			return err
		}
		o.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: min}))
		if *ending != "" {
			o.Ending = func(reason string) {
				f, err := os.OpenFile(*ending, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
				if err == nil {
					fmt.Fprintln(f, reason)
					f.Close()
				}
			}
		}
		if err := o.Flags.ParseOptions(*words); err != nil {
			return err
		}
		if parent != nil {
			o.Ready = parent.Ready
		}
		return Serve(ctx, &oneFile{RawFileSystem: fuse.NewDefaultRawFileSystem(), hang: *hang}, o)
	}()
	if err == nil {
		return 0
	}
	text := strings.ReplaceAll(err.Error(), "\n", "; ")
	if parent != nil {
		parent.Failed(text, 7)
	} else {
		fmt.Fprintln(os.Stderr, text)
	}
	return 7
}

// oneFile is a directory with one file, one empty directory, and one file that panics when it is read. Looking up "locked" has the
// server wait in the kernel for the lock of the directory, which the one who looks it up holds.
type oneFile struct {
	fuse.RawFileSystem
	hang   string
	server *fuse.Server
}

// Init implements [fuse.RawFileSystem].
func (fs *oneFile) Init(s *fuse.Server) { fs.server = s }

const fileText = "hello\n"

var nodes = map[uint64]struct {
	name string
	mode uint32
}{
	1: {"", syscall.S_IFDIR | 0o755},
	2: {"file", syscall.S_IFREG | 0o644},
	3: {"dir", syscall.S_IFDIR | 0o755},
	4: {"panic", syscall.S_IFREG | 0o644},
}

func (fs *oneFile) attr(node uint64) fuse.Attr {
	a := fuse.Attr{Ino: node, Mode: nodes[node].mode, Nlink: 1, Size: uint64(len(fileText))}
	a.Uid, a.Gid = uint32(os.Geteuid()), uint32(os.Getegid())
	return a
}

func (fs *oneFile) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if name == "locked" {
		fs.server.EntryNotify(h.NodeId, name)
	}
	for id, n := range nodes {
		if h.NodeId == 1 && n.name == name {
			out.NodeId, out.Attr = id, fs.attr(id)
			return fuse.OK
		}
	}
	return fuse.ENOENT
}

// GetAttr lets the kernel keep the root's attributes: a dead mount must be told all the same.
func (fs *oneFile) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.Attr = fs.attr(in.NodeId)
	out.SetTimeout(time.Hour)
	return fuse.OK
}

func (fs *oneFile) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status    { return fuse.OK }
func (fs *oneFile) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.OK }

func (fs *oneFile) Read(_ <-chan struct{}, in *fuse.ReadIn, _ []byte) (fuse.ReadResult, fuse.Status) {
	if in.NodeId == 4 {
		panic("no reader may see this")
	}
	text := []byte(fileText)
	return fuse.ReadResultData(text[min(in.Offset, uint64(len(text))):]), fuse.OK
}

func (fs *oneFile) ReadDirPlus(interrupted <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	switch fs.hang {
	case "interruptible":
		<-interrupted
		return fuse.EINTR
	case "deaf":
		select {}
	}
	if in.NodeId != 1 || in.Offset > 0 {
		return fuse.OK
	}
	for id := uint64(2); id <= 4; id++ {
		*out.AddDirLookupEntry(fuse.DirEntry{Name: nodes[id].name, Mode: nodes[id].mode, Ino: id}) = fuse.EntryOut{
			NodeId: id, Attr: fs.attr(id),
		}
	}
	return fuse.OK
}

func (fs *oneFile) StatFs(<-chan struct{}, *fuse.InHeader, *fuse.StatfsOut) fuse.Status {
	return fuse.OK
}
