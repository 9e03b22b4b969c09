package mount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Options is what Serve needs beside the file system.
type Options struct {
	Point   *Point   // from Check
	Sources []string // what is mounted, as a person would type it: for df(1), mount(8) and List
	Flags   Flags
	Log     *slog.Logger

	// Ready is called once when requests are being answered, with the mountpoint; an error ends the mount and is
	// returned by Serve. It may be nil.
	Ready func(mountpoint string) error

	// Ending is called once when it is known that the mount ends, with why: before it is taken away if this process does
	// it; if somebody else has, as soon as that is seen, which for a mount that was detached while files are open is while
	// they can still be read. It may be nil.
	Ending func(reason string)
}

const (
	// graceTime is how long files may stay open after the process was asked to end, before they are cut off.
	graceTime = time.Second
	// drainTime is how long requests that are under way when the mount is taken away may go on.
	drainTime = 500 * time.Millisecond
	// lateTime is after what time the log says that a mount which was taken away is still in use.
	lateTime = 5 * time.Second
)

// Serve mounts fsys, and answers until it is unmounted (from outside, or because ctx ended); then it returns nil, with
// nothing left behind. Errors, all before the first request: those of Check, because things may have changed since;
// ErrNoFUSE; ErrDenied; ctx's; what Ready returned.
func Serve(ctx context.Context, fsys fuse.RawFileSystem, o Options) error {
	dir, err := stateDir()
	if err != nil {
		return err
	}
	m := &mounted{log: o.Log, dir: dir}
	if err := m.attach(ctx, fsys, o); err != nil {
		return err
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		m.server.Serve()
	}()
	o.Log.Info("mounted", "mountpoint", m.state.Mountpoint, "device", m.state.Device)
	serveErr := m.wait(ctx, served, o)
	return errors.Join(serveErr, m.cleanUp())
}

// mounted is a mount of this process.
type mounted struct {
	log    *slog.Logger
	dir    string // of the state files
	server *fuse.Server
	state  *State
}

// attach takes the mountpoint: from the last look at it to the state file nobody else can.
func (m *mounted) attach(ctx context.Context, fsys fuse.RawFileSystem, o Options) error {
	unlock, err := lockState(ctx, m.dir)
	if err != nil {
		return err
	}
	defer unlock()

	path := o.Point.path
	created, err := o.Point.take(m.dir)
	if err != nil {
		return err
	}
	// The new mount may get the device number of one that was removed by hand.
	if err := dropDead(m.dir, path); err != nil {
		return err
	}
	_, started, err := processStat(os.Getpid())
	if err != nil {
		return fmt.Errorf("reading the start time of this process: %w", err)
	}
	m.state = &State{
		Mountpoint: path, Sources: o.Sources, PID: os.Getpid(), Started: started, Mounted: time.Now(), Created: created,
	}
	if err := m.mount(fsys, o); err != nil {
		if forgetErr := m.state.forget(m.dir); forgetErr != nil {
			m.log.Warn("cleaning up", "mountpoint", path, "error", forgetErr)
		}
		return err
	}
	return nil
}

func (m *mounted) mount(fsys fuse.RawFileSystem, o Options) error {
	path := m.state.Mountpoint
	fd, err := attachDevice(path, sourceText(o.Sources), o.Flags)
	if err != nil {
		return err
	}
	fail := func(err error) error {
		return errors.Join(err, detach(path, true))
	}
	e, err := mountAt(path)
	if err != nil || e == nil || !e.ours() {
		unix.Close(fd)
		return fail(errors.Join(errors.New("the new mount is not in the mount table"), err))
	}
	m.state.Device = e.device
	if err := m.state.write(m.dir); err != nil {
		unix.Close(fd)
		return fail(err)
	}
	// The name stands for the descriptor of a mount that is there already.
	m.server, err = fuse.NewServer(fsys, fmt.Sprintf("/dev/fd/%d", fd), m.fuseOptions(o))
	if err != nil {
		return fail(fmt.Errorf("greeting the kernel: %w", err))
	}
	m.setReadAhead()
	return nil
}

func (m *mounted) fuseOptions(o Options) *fuse.MountOptions {
	return &fuse.MountOptions{
		Name:          subtype,
		MaxWrite:      requestSize,
		MaxReadAhead:  requestSize,
		MaxBackground: 64,
		DisableXAttrs: o.Flags.NoXattr,
		// The tree never changes a symlink: one with another target is another node.
		EnableSymlinkCaching: true,
		Logger:               slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
		PanicHandler: func(reason any) fuse.Status {
			args := []any{"reason", reason}
			if o.Log.Enabled(context.Background(), slog.LevelDebug) {
				args = append(args, "stack", string(debug.Stack()))
			}
			o.Log.Error("panic while answering a request", args...)
			return fuse.EIO
		},
	}
}

// setReadAhead asks the kernel to read ahead as much as one request can carry: FUSE's own way to say so is capped at
// 128 KiB, and sets it while greeting. Only root may.
func (m *mounted) setReadAhead() {
	name := "/sys/class/bdi/" + m.state.Device + "/read_ahead_kb"
	if err := os.WriteFile(name, fmt.Appendf(nil, "%d\n", requestSize>>10), 0); err != nil {
		m.log.Debug("setting read-ahead", "error", err)
	}
}

// wait returns when the mount is gone, or as good as gone.
func (m *mounted) wait(ctx context.Context, served <-chan struct{}, o Options) error {
	answer := make(chan error, 1)
	if o.Ready != nil {
		go func() { answer <- o.Ready(m.state.Mountpoint) }()
	}
	var once sync.Once
	ending := func(reason string) {
		if o.Ending != nil {
			once.Do(func() { o.Ending(reason) })
		}
	}
	gone, stop := m.gone()
	defer stop()
	var late <-chan time.Time
	for {
		select {
		case <-served:
			ending("unmounted")
			m.log.Info("unmounted", "mountpoint", m.state.Mountpoint)
			return nil
		case <-gone:
			ending("unmounted")
			m.log.Debug("not in the mount table any more", "mountpoint", m.state.Mountpoint)
			gone, late = nil, time.After(lateTime)
		case <-late:
			m.log.Warn("unmounted, but still in use"+elsewhereText(m.state.Device), "mountpoint", m.state.Mountpoint)
		case err := <-answer:
			if err != nil {
				m.end(served)
				return err
			}
		case <-ctx.Done():
			ending(context.Cause(ctx).Error())
			m.log.Info("unmounting", "mountpoint", m.state.Mountpoint, "reason", context.Cause(ctx))
			m.end(served)
			return nil
		}
	}
}

// end takes the mount away. While files are open it waits a little; then they are cut off: their readers get an error
// as soon as this process has ended.
func (m *mounted) end(served <-chan struct{}) {
	lazyAt := time.Now().Add(graceTime)
	for m.there() {
		lazy := time.Now().After(lazyAt)
		err := detach(m.state.Mountpoint, lazy)
		if err == nil {
			break
		}
		if lazy {
			m.log.Error("unmounting", "mountpoint", m.state.Mountpoint, "error", err)
			break
		}
		select {
		case <-served:
		case <-time.After(5 * pollInterval):
		}
	}
	select {
	case <-served:
	case <-time.After(drainTime):
	}
}

// there says whether this process's mount is still what is seen at the mountpoint.
func (m *mounted) there() bool {
	e, err := mountAt(m.state.Mountpoint)
	return err == nil && e != nil && e.device == m.state.Device
}

// cleanUp removes what the mount leaves. A connection that was aborted (through /sys/fs/fuse) leaves the mount as well.
func (m *mounted) cleanUp() error {
	// Others hold the lock for moments; if one hangs, ending is more important than tidiness.
	ctx, cancel := context.WithTimeout(context.Background(), graceTime)
	defer cancel()
	unlock, err := lockState(ctx, m.dir)
	if err != nil {
		return err
	}
	defer unlock()
	if m.there() {
		if err := detach(m.state.Mountpoint, true); err != nil {
			m.log.Error("unmounting", "mountpoint", m.state.Mountpoint, "error", err)
		}
	}
	return m.state.forget(m.dir)
}

// take looks at the mountpoint once more and makes it ready: a dead mount is removed and a missing directory made. It
// says whether the directory is to be removed when the mount ends. The caller holds the lock.
func (p *Point) take(dir string) (created bool, err error) {
	for {
		f, err := p.look()
		if err != nil {
			return created, err
		}
		switch f {
		case foundDirectory:
			return created, nil
		case foundNothing:
			if err := os.Mkdir(p.path, 0o755); err != nil {
				return false, notMade(p.path, err)
			}
			return true, nil
		case foundDead:
			inherited, err := removeDead(dir, p.path)
			if err != nil {
				return created, err
			}
			created = created || inherited
		}
	}
}

// notMade says why the directory for a mountpoint could not be made.
func notMade(path string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: %w", ErrNoAccess, err)
	}
	parents, _ := mountinfo.GetMounts(mountinfo.ParentsFilter(filepath.Dir(path))) // without them the error is enough
	closest := &mountinfo.Info{}
	for _, i := range parents {
		if len(i.Mountpoint) >= len(closest.Mountpoint) {
			closest = i
		}
	}
	if closest.FSType == "" {
		return fmt.Errorf("%w: %w", ErrNoPlace, err)
	}
	return fmt.Errorf("%w: %s is a file system of type %s: %w", ErrNoPlace, closest.Mountpoint, closest.FSType, err)
}

// removeDead takes a mount away whose process was killed, and the state files for its mountpoint. It says whether the
// directory is to be removed as well. The caller holds the lock, and has seen that the mount is dead.
func removeDead(dir, path string) (created bool, err error) {
	e, err := mountAt(path)
	if err != nil || e == nil {
		return false, err
	}
	st, err := stateOf(path, e)
	if err != nil {
		return false, err
	}
	if err := detach(path, true); err != nil {
		return false, fmt.Errorf("removing a dead mount: %w", err)
	}
	return st != nil && st.Created, dropDead(dir, path)
}
