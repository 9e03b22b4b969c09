package storage

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"syscall"

	cs "go.podman.io/storage"
	"go.podman.io/storage/pkg/reexec"
	"golang.org/x/sys/unix"
)

// probeCommand is the name under which this program starts itself to try out a store.
const probeCommand = "imgfs-probe-store"

func init() { reexec.Register(probeCommand, probe) }

// probeFirst has the library try out, once after each boot, what overlay mounts can do here. It does so with mounts below
// the driver's directory, and podman, whenever it starts, mounts that directory onto itself: a mount that is there at that
// moment is out of reach from then on, and stays. So it is done in a process with mounts of its own, whose result the
// library finds in the run root. If that fails the library tries by itself.
func (s *Source) probeFirst() {
	if s.driver != "overlay" || s.real.RunRoot == "" {
		return
	}
	if known, err := filepath.Glob(filepath.Join(s.real.RunRoot, "overlay", "idmapped-lower-dir-*")); err != nil || len(known) > 0 {
		return
	}
	options, err := json.Marshal(s.writable())
	if err != nil {
		s.log.Debug("probing store", "store", s.name, "error", err)
		return
	}
	cmd := reexec.Command(probeCommand)
	cmd.Stdin = bytes.NewReader(options)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		s.log.Debug("probing store", "store", s.name, "error", err, "output", string(out))
	}
}

// probe is that process.
func probe() {
	var options cs.StoreOptions
	if json.NewDecoder(os.Stdin).Decode(&options) != nil || unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") != nil {
		os.Exit(1)
	}
	store, err := cs.GetStore(options)
	if err != nil {
		os.Exit(1)
	}
	driver, err := store.GraphDriver()
	if err != nil {
		os.Exit(1)
	}
	driver.SupportsShifting(nil, nil)
}
