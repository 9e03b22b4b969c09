package storage

import (
	"cmp"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	cs "go.podman.io/storage"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/userns"
)

// keeperCommand is the name under which this program starts itself as a store's keeper.
const keeperCommand = "imgfs-keep-store"

// How long a keeper lives that nobody has asked for anything.
const (
	openerIdle = time.Minute
	writerIdle = 250 * time.Millisecond
)

// A keeper works on an ordinary user's store for a [Source] of his, in a child process that is root of the user namespace
// which the store was made in (see package userns): there it has the store open as a Source of its own. It opens the
// files that belong to subordinate ids, or whose modes keep even their owner out; it lists what has to be walked, whose
// owners mean something only there; and it makes all changes, with the same code as root's.
//
// There are two. The opener reads. The writer has mounts of its own, because the library tries out what can be mounted, and
// so it may hold on to file systems that somebody unmounts, this mount among them: it ends as soon as it has nothing to do.
// Each is started when it is needed, which takes some 0.1 s.
//
// A call is a message with a number and a method, and its reply one with that number. While a call runs, its caller may send
// that it is given up, or that what the call waits for is complete (see order).
type keeper struct {
	options cs.StoreOptions
	log     *slog.Logger
	mounts  bool          // it has its own
	rests   time.Duration // until it ends when it has nothing to do

	mu      sync.Mutex
	child   *userns.Child     // nil: none runs; guarded by mu
	last    uint64            // the number of the last call; guarded by mu
	pending map[uint64]*asked // guarded by mu
	idle    *time.Timer       // guarded by mu
	closed  bool              // guarded by mu
	warned  bool              // that there is one id only; guarded by mu
}

// An asked is a call that has no reply yet.
type asked struct {
	k       *keeper
	child   *userns.Child
	number  uint64
	ready   chan []byte  // what a call that is under way has to say first
	replied chan *answer // buffered
}

// patience is how long a keeper has to end a call that was given up.
const patience = 10 * time.Second

var errKeeperEnded = errors.New("the process that works in the user's namespace has ended")

func newOpener(options cs.StoreOptions, log *slog.Logger) *keeper {
	return &keeper{options: options, log: log, rests: openerIdle, pending: map[uint64]*asked{}}
}

func newWriter(options cs.StoreOptions, log *slog.Logger) *keeper {
	return &keeper{options: options, log: log, mounts: true, rests: writerIdle, pending: map[uint64]*asked{}}
}

// running returns the child, which it starts if there is none. mu is held.
func (k *keeper) running() (*userns.Child, error) {
	if k.closed {
		return nil, os.ErrClosed
	}
	if k.child != nil {
		return k.child, nil
	}
	child, err := userns.Start(keeperCommand, k.mounts)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", imgsrc.ErrUnsupported, err)
	}
	options, err := encode(k.options)
	if err == nil {
		err = child.Send(options, nil)
	}
	if err != nil {
		child.Close()
		return nil, err
	}
	k.child = child
	k.log.Debug("working in a user namespace", "store", k.options.GraphRoot, "pid", child.PID(), "mounts", k.mounts)
	if child.Alone != nil && !k.warned {
		k.warned = true
		k.log.Warn("the user namespace has the user's own id only", "store", k.options.GraphRoot, "error", child.Alone)
	}
	go k.listen(child)
	return child, nil
}

// check returns why no keeper can be had.
func (k *keeper) check() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, err := k.running()
	if err == nil {
		k.rest()
	}
	return err
}

// alone says why the keeper has the user's own id only; nil if it has the others.
func (k *keeper) alone() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.child == nil {
		return nil
	}
	return k.child.Alone
}

// begin sends a call.
func (k *keeper) begin(method string, args any, file *os.File) (*asked, error) {
	body, err := encode(args)
	if err != nil {
		return nil, err
	}
	return k.beginRaw(method, body, file)
}

func (k *keeper) beginRaw(method string, body []byte, file *os.File) (*asked, error) {
	k.mu.Lock()
	child, err := k.running()
	if err != nil {
		k.mu.Unlock()
		return nil, err
	}
	k.last++
	a := &asked{k: k, child: child, number: k.last, ready: make(chan []byte, 1), replied: make(chan *answer, 1)}
	k.pending[a.number] = a
	k.rest()
	k.mu.Unlock()
	if err := a.send(message{Method: method, Args: body}, file); err != nil {
		k.mu.Lock()
		if k.child == child && (errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)) {
			k.child = nil // it is dead; listen does the rest
		}
		k.mu.Unlock()
		k.forget(a.number)
		return nil, fmt.Errorf("%w: %w", errKeeperEnded, err)
	}
	return a, nil
}

func (a *asked) send(m message, file *os.File) error {
	m.Number = a.number
	return a.child.Send(m.encode(), file)
}

// wait returns the reply. When ctx ends the call is given up, and its reply waited for all the same, for a while.
func (a *asked) wait(ctx context.Context) (*answer, error) {
	select {
	case r := <-a.replied:
		return r, r.Err.error()
	case <-ctx.Done():
	}
	_ = a.send(message{Order: orderAbandon}, nil) // else it has ended
	select {
	case r := <-a.replied:
		if r.file != nil {
			r.file.Close()
		}
	case <-time.After(patience):
		a.k.forget(a.number)
	}
	return nil, context.Cause(ctx)
}

// call has the keeper do something, and fills result, unless that is nil.
func (k *keeper) call(ctx context.Context, method string, args, result any) error {
	a, err := k.begin(method, args, nil)
	if err != nil {
		return err
	}
	r, err := a.wait(ctx)
	if err != nil || result == nil {
		return err
	}
	return decode(r.Result, result)
}

// change is call for a change that is made at one moment, at which the keeper asks whether it is still wanted.
func (k *keeper) change(ctx context.Context, method string, args any) error {
	began := time.Now()
	a, err := k.begin(method, args, nil)
	if err != nil {
		return err
	}
	select {
	case <-a.ready:
	case r := <-a.replied: // there is nothing to change
		return r.Err.error()
	case <-ctx.Done():
		_, err := a.wait(ctx)
		return lockedSince(began, err)
	}
	order, err := orderComplete, imgsrc.Commit(ctx)
	if err != nil {
		order = orderAbandon
	}
	_ = a.send(message{Order: order}, nil) // an error is the reply's, too
	_, made := a.wait(context.WithoutCancel(ctx))
	return cmp.Or(err, made)
}

// openIn is the function of this name, with the keeper's help where the user may not open a file.
func (s *Source) openIn(root int, dir, name string) (int, error) {
	fd, err := openIn(root, dir, name)
	if s.opener == nil || !errors.Is(err, fs.ErrPermission) {
		return fd, err
	}
	fd, keptErr := s.opener.open(dir, name)
	switch {
	case keptErr == nil:
		return fd, nil
	case errors.Is(keptErr, userns.ErrUnavailable):
		return -1, fmt.Errorf("%w; root of a user namespace could: %v", err, keptErr) //nolint:errorlint // it may not open it, that is all
	}
	return -1, s.opener.denied(keptErr)
}

// open opens a file below the directory of a layer's files. A keeper that somebody has killed is started again for it.
func (k *keeper) open(dir, name string) (fd int, err error) {
	for range 2 {
		if fd, err = k.openOnce(dir, name); !errors.Is(err, errKeeperEnded) {
			break
		}
	}
	return fd, err
}

func (k *keeper) openOnce(dir, name string) (int, error) {
	a, err := k.beginRaw(methodOpen, openArgs{dir, name}.encode(), nil)
	if err != nil {
		return -1, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := a.wait(ctx)
	if err != nil {
		return -1, err
	}
	if r.file == nil {
		return -1, errors.New("the keeper has sent no file")
	}
	defer r.file.Close()
	return unix.FcntlInt(r.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
}

// isOwn says whether a layer's directory is in the user's own store: what is in an additional one has no other owners in
// the user's namespace than nobody.
func (s *Source) isOwn(dir string) bool {
	driver, _ := splitDir(dir)
	return owner(driver) == os.Geteuid()
}

// kept is entries as the keeper finds them: owners are what they are for containers there, and no directory is closed.
func (w *walkedFiles) kept(ctx context.Context, emit func(*imgsrc.File) error) error {
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close()
	a, err := w.s.opener.begin(methodWalk, walkArgs{w.dir, w.parent, w.vfs}, in)
	in.Close()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { out.Close() })() // nobody may wait for the next entry
	entries := gob.NewDecoder(out)
	for {
		var f imgsrc.File
		if err := entries.Decode(&f); err != nil {
			break // all that were found are here: the reply says whether those are all
		}
		if err := emit(&f); err != nil {
			cancel(err)
			_, _ = a.wait(ctx)
			return err
		}
	}
	_, err = a.wait(ctx)
	return w.s.opener.denied(err)
}

// listen takes the child's answers until it has ended.
func (k *keeper) listen(child *userns.Child) {
	for {
		text, file, err := child.Receive()
		if err != nil {
			break
		}
		r, err := decodeAnswer(text)
		if err != nil {
			break
		}
		r.file = file
		k.mu.Lock()
		a := k.pending[r.Number]
		if !r.Ready {
			delete(k.pending, r.Number)
			k.rest()
		}
		k.mu.Unlock()
		switch {
		case a == nil:
			if file != nil {
				file.Close()
			}
		case r.Ready:
			a.ready <- r.Result
		default:
			a.replied <- r
		}
	}
	k.mu.Lock()
	if k.child == child {
		k.child = nil
	}
	var left []*asked
	for n, a := range k.pending {
		if a.child == child {
			left = append(left, a)
			delete(k.pending, n)
		}
	}
	k.mu.Unlock()
	child.Close()
	for _, a := range left {
		a.replied <- &answer{Err: sent(fmt.Errorf("%w: %s", errKeeperEnded, child.Last()))}
	}
}

func (k *keeper) forget(number uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.pending, number)
	k.rest()
}

// rest has the child end if nobody asks it for anything for a while. mu is held.
func (k *keeper) rest() {
	if k.idle != nil {
		k.idle.Stop()
	}
	if len(k.pending) > 0 || k.child == nil {
		return
	}
	k.idle = time.AfterFunc(k.rests, func() {
		k.mu.Lock()
		child := k.child
		if len(k.pending) > 0 || child == nil {
			k.mu.Unlock()
			return
		}
		k.child = nil
		k.mu.Unlock()
		child.Close()
	})
}

// close ends the child, and waits for it: what it was doing is undone.
func (k *keeper) close() {
	k.mu.Lock()
	k.closed = true
	child := k.child
	k.child = nil
	k.rest()
	k.mu.Unlock()
	if child != nil {
		child.Close()
	}
}
