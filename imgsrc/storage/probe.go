package storage

import (
	"bytes"
	"cmp"
	"encoding/json"
	"log/slog"
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
func probeFirst(options cs.StoreOptions, log *slog.Logger) {
	if options.RunRoot == "" || options.GraphRoot == "" {
		own, err := cs.DefaultStoreOptions() // as the library completes them
		if err != nil {
			return
		}
		options.RunRoot = cmp.Or(options.RunRoot, own.RunRoot)
		options.GraphRoot = cmp.Or(options.GraphRoot, own.GraphRoot)
	}
	switch _, err := os.Stat(filepath.Join(options.GraphRoot, "overlay-layers")); {
	case options.GraphDriverName != "" && options.GraphDriverName != "overlay", options.RunRoot == "":
		return
	case options.GraphDriverName == "" && err != nil:
		return // the library chooses the driver by what is there; where nothing is it may be another
	}
	if known, err := filepath.Glob(filepath.Join(options.RunRoot, "overlay", "idmapped-lower-dir-*")); err != nil || len(known) > 0 {
		return
	}
	text, err := json.Marshal(options)
	if err != nil {
		log.Debug("probing store", "store", options.GraphRoot, "error", err)
		return
	}
	cmd := reexec.Command(probeCommand)
	cmd.Stdin = bytes.NewReader(text)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		log.Debug("probing store", "store", options.GraphRoot, "error", err, "output", string(out))
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
