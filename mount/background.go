package mount

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// The two processes of a mount in the background talk over two pipes, whose descriptors the child has as 3 and 4:
//
//	child                         parent
//	mounts, begins to answer
//	{"mountpoint":"/x"}  ------>  reads the tree
//	serves for good      <------  "ok", ends with 0
//
// A child that cannot mount says {"error":"...","code":4} instead and ends, and the parent ends with that. When the
// parent ends without its "ok", for whatever reason, the child reads the end of the pipe, unmounts and ends.
const (
	childEnv   = "_IMGFS_BACKGROUND"
	childValue = "3,4"
	reportFD   = 3
	consentFD  = 4
)

type report struct {
	Mountpoint string `json:"mountpoint,omitempty"`
	Error      string `json:"error,omitempty"`
	Code       int    `json:"code,omitempty"`
}

// stopTime is how long the parent waits for a child that it asked to end.
const stopTime = 5 * time.Second

// ChildError is what a process in the background reported before it ended.
type ChildError struct {
	Text string
	Code int // the exit code it asks for
}

func (e *ChildError) Error() string { return e.Text }

// Daemonise starts this program once more, with the same arguments, as a process in the background: a session of its
// own, nothing open but /dev/null and stderr (which may be nil). It returns nil when the tree can be read: statfs(2) and
// the listings of the mountpoint and of each directory in probe, given relative to it, have succeeded here. If that
// fails, or ctx ends before, the child is ended first. Errors: *ChildError, ctx's, or that of the failed read.
func Daemonise(ctx context.Context, stderr *os.File, probe ...string) error {
	c, err := startChild(stderr)
	if err != nil {
		return fmt.Errorf("starting the background process: %w", err)
	}
	defer c.consent.Close()
	defer c.reports.Close()
	ready := make(chan error, 1)
	go func() { ready <- c.await(probe) }()
	select {
	case err = <-ready:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		return errors.Join(err, c.stop())
	}
	return nil
}

// child is the parent's view of the process in the background.
type child struct {
	cmd     *exec.Cmd
	reports *os.File
	consent *os.File
	ended   chan struct{} // closed when the process has been waited for
}

func startChild(stderr *os.File) (*child, error) {
	// Descriptors that this process was given would otherwise live as long as the mount: a script's lock, a test's pipe.
	// On kernels that cannot do this they do.
	_ = unix.CloseRange(3, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC)
	reports, reportsChild, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	consentChild, consent, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, reports.Close(), reportsChild.Close())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), childEnv+"="+childValue)
	cmd.ExtraFiles = []*os.File{reportsChild, consentChild}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if stderr != nil {
		cmd.Stderr = stderr
	}
	err = cmd.Start()
	err = errors.Join(err, reportsChild.Close(), consentChild.Close())
	if err != nil {
		return nil, errors.Join(err, reports.Close(), consent.Close())
	}
	c := &child{cmd: cmd, reports: reports, consent: consent, ended: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // what it ended with is in cmd.ProcessState
		close(c.ended)
	}()
	return c, nil
}

// await waits for the child's report, reads the tree and lets the child go on.
func (c *child) await(probe []string) error {
	var r report
	if err := json.NewDecoder(c.reports).Decode(&r); err != nil {
		<-c.ended
		return fmt.Errorf("the background process ended before the mount was there (%s); --foreground or --log-file tell more", c.cmd.ProcessState)
	}
	if r.Mountpoint == "" {
		return &ChildError{Text: r.Error, Code: r.Code}
	}
	if err := readTree(r.Mountpoint, probe); err != nil {
		return fmt.Errorf("reading the new mount: %w", err)
	}
	if _, err := io.WriteString(c.consent, "ok"); err != nil {
		return fmt.Errorf("answering the background process: %w", err)
	}
	return nil
}

// stop ends the child, by force if it does not hear, and removes what it then leaves.
func (c *child) stop() error {
	_ = c.cmd.Process.Signal(unix.SIGTERM) // fails if it has ended
	select {
	case <-c.ended:
		return nil
	case <-time.After(stopTime):
	}
	_ = c.cmd.Process.Kill()
	<-c.ended
	mounts, err := List()
	for _, st := range mounts {
		if !st.Dead || st.PID != c.cmd.Process.Pid {
			continue
		}
		if clearErr := clearDead(context.Background(), st.Mountpoint); !errors.Is(clearErr, errReplaced) {
			err = errors.Join(err, clearErr)
		}
	}
	return err
}

// readTree proves that the mount answers.
func readTree(mountpoint string, probe []string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(mountpoint, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", mountpoint, err)
	}
	for _, name := range append([]string{"."}, probe...) {
		d, err := os.Open(filepath.Join(mountpoint, name))
		if err != nil {
			return err
		}
		_, err = d.Readdirnames(1)
		d.Close()
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	return nil
}

// Parent is the child's view of the process that started it.
type Parent struct {
	reports *os.File
	consent *os.File
}

// FindParent returns the process that started this one by Daemonise, nil if it was started otherwise. It is called once,
// before files are opened or processes started.
func FindParent() *Parent {
	value := os.Getenv(childEnv)
	_ = os.Unsetenv(childEnv) // fails for names that are no names
	if value != childValue {
		return nil
	}
	for _, fd := range []int{reportFD, consentFD} {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
			return nil
		}
		unix.CloseOnExec(fd)
	}
	return &Parent{reports: os.NewFile(reportFD, "reports"), consent: os.NewFile(consentFD, "consent")}
}

// Ready tells the parent that the mount answers, and returns nil when it agrees: from then on this process is on its
// own, in the root directory so that it keeps no file system busy. Error: the parent is gone.
func (p *Parent) Ready(mountpoint string) error {
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("leaving the working directory: %w", err)
	}
	if err := json.NewEncoder(p.reports).Encode(report{Mountpoint: mountpoint}); err != nil {
		return fmt.Errorf("reporting to the parent: %w", err)
	}
	if answer, err := io.ReadAll(p.consent); err != nil || string(answer) != "ok" {
		return errors.Join(errors.New("the parent process ended before the mount could be read"), err)
	}
	return errors.Join(p.reports.Close(), p.consent.Close())
}

// Failed tells the parent the error with which this process ends. After Ready it does nothing: nobody listens.
func (p *Parent) Failed(text string, code int) {
	_ = json.NewEncoder(p.reports).Encode(report{Error: text, Code: code})
}
