package storage

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
	cs "go.podman.io/storage"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/userns"
)

func init() { userns.Register(keeperCommand, keep) }

// The methods of calls, and what comes with them.
const (
	methodOpen         = "open"
	methodWalk         = "walk" // with a pipe for the entries
	methodTag          = "tag"
	methodRemove       = "remove"
	methodAddIndex     = "addindex"
	methodReceive      = "receive"
	methodRemoveLayers = "removelayers"
)

type walkArgs struct {
	Dir, Parent string
	VFS         bool
}

type tagArgs struct {
	ID          string
	Add, Remove []string
}

type removeArgs struct {
	ID    string
	Names []string
}

type addIndexArgs struct {
	Name   string
	Text   []byte
	Images map[digest.Digest]string
	From   string
}

// keep is the child of a [keeper]. Its parent has read the store's configuration, and sends it first.
func keep(conn *userns.Conn) {
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP) // its end is its parent's
	logrus.SetLevel(logrus.ErrorLevel)                    // to stderr, which the parent shows if this process fails
	text, _, err := conn.Receive()
	if err != nil {
		return
	}
	var options cs.StoreOptions
	err = decode(text, &options)
	var src *Source
	if err == nil {
		src, err = open(Options{
			GraphRoot: options.GraphRoot, RunRoot: options.RunRoot, Driver: options.GraphDriverName,
			Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		}, options)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	s := &keeping{src: src, conn: conn, calls: map[uint64]*call{}}
	ctx, cancel := context.WithCancel(context.Background())
	s.listen(ctx)
	cancel() // what is under way
	ended := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		src.Close()
	case <-time.After(patience): // the parent may be gone, and what is waited for is a lock of the store
	}
}

// keeping is what the child knows of its calls.
type keeping struct {
	src  *Source
	conn *userns.Conn
	wg   sync.WaitGroup

	mu    sync.Mutex
	calls map[uint64]*call // guarded by mu
}

// A call is one that is carried out.
type call struct {
	of       *keeping
	number   uint64
	args     []byte
	file     *os.File // that came with it, or nil
	abandon  context.CancelFunc
	complete chan struct{} // closed when what it waits for is there

	into *session // of methodReceive
}

// listen takes calls until the parent has closed the connection.
func (s *keeping) listen(ctx context.Context) {
	for {
		text, file, err := s.conn.Receive()
		if err != nil {
			return
		}
		m, err := decodeMessage(text)
		if err != nil {
			return
		}
		if m.Order == orderBegin {
			ctx, cancel := context.WithCancel(ctx)
			c := &call{of: s, number: m.Number, args: m.Args, file: file, abandon: cancel, complete: make(chan struct{})}
			s.mu.Lock()
			s.calls[m.Number] = c
			s.mu.Unlock()
			s.wg.Go(func() { s.serve(ctx, m.Method, c) })
			continue
		}
		s.mu.Lock()
		c := s.calls[m.Number]
		s.mu.Unlock()
		switch {
		case c == nil: // it has ended
		case m.Order == orderAbandon:
			c.abandon()
		case m.Order == orderComplete:
			close(c.complete)
		}
	}
}

func (s *keeping) serve(ctx context.Context, method string, c *call) {
	defer c.abandon()
	result, file, err := s.work(ctx, method, c)
	if c.file != nil {
		c.file.Close()
	}
	s.mu.Lock()
	delete(s.calls, c.number)
	s.mu.Unlock()
	a := answer{Number: c.number, Err: sent(err)}
	if result != nil {
		if a.Result, err = encode(result); err != nil {
			a.Err = sent(err)
		}
	}
	c.answer(a, file)
	if file != nil {
		file.Close()
	}
}

// answer sends one. If it cannot be sent the parent is gone.
func (c *call) answer(a answer, file *os.File) {
	if text, err := a.encode(); err == nil {
		_ = c.of.conn.Send(text, file)
	}
}

func (s *keeping) work(ctx context.Context, method string, c *call) (result any, file *os.File, err error) {
	if do, ok := sessionMethods[method]; ok {
		result, err = s.inSession(ctx, c, do)
		return result, nil, err
	}
	switch method {
	case methodOpen:
		a, err := decodeOpen(c.args)
		if err != nil {
			return nil, nil, err
		}
		file, err = openBelow(a.Dir, a.Name)
		return nil, file, err
	case methodWalk:
		var a walkArgs
		if err := decode(c.args, &a); err != nil {
			return nil, nil, err
		}
		w := &walkedFiles{unpacked: unpacked{s: s.src, dir: a.Dir}, parent: a.Parent, vfs: a.VFS}
		defer w.Close()
		entries := gob.NewEncoder(c.file)
		err = w.entries(ctx, func(f *imgsrc.File) error { return entries.Encode(f) })
		return nil, nil, err
	case methodTag:
		var a tagArgs
		if err := decode(c.args, &a); err != nil {
			return nil, nil, err
		}
		return nil, nil, s.src.tag(c.committing(ctx), a.ID, a.Add, a.Remove)
	case methodRemove:
		var a removeArgs
		if err := decode(c.args, &a); err != nil {
			return nil, nil, err
		}
		return nil, nil, s.src.remove(c.committing(ctx), a.ID, a.Names)
	case methodAddIndex:
		var a addIndexArgs
		if err := decode(c.args, &a); err != nil {
			return nil, nil, err
		}
		result, err = s.src.AddIndex(ctx, a.Name, a.Text, a.Images, a.From)
		return result, nil, err
	case methodReceive:
		result, err = s.receive(ctx, c)
		return result, nil, err
	case methodRemoveLayers:
		var ids []string
		if err := decode(c.args, &ids); err != nil {
			return nil, nil, err
		}
		s.src.removeStrays(ids)
		return nil, nil, nil
	}
	return nil, nil, fmt.Errorf("%q is nothing that a keeper does: %w", method, imgsrc.ErrUnsupported)
}

// committing returns a context in which the parent is asked before a change is made.
func (c *call) committing(ctx context.Context) context.Context {
	return imgsrc.WithCommit(ctx, func() error {
		c.answer(answer{Number: c.number, Ready: true}, nil)
		select {
		case <-c.complete:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
}

// openBelow opens a file as a reader of the layer would.
func openBelow(dir, name string) (*os.File, error) {
	root, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	fd, err := openIn(root, dir, name)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), filepath.Join(dir, name)), nil
}

// A wholeReader reads what comes through a pipe. The end of a pipe does not tell whether all has come: the parent says so.
type wholeReader struct {
	ctx context.Context
	c   *call
}

func (r *wholeReader) Read(p []byte) (int, error) {
	n, err := r.c.file.Read(p)
	if err != io.EOF {
		return n, err
	}
	select {
	case <-r.c.complete:
		return n, io.EOF
	case <-r.ctx.Done():
		return n, errors.Join(context.Cause(r.ctx), io.ErrUnexpectedEOF)
	}
}
