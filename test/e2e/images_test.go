package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/imgfs/imgfs/test/images"
)

func layout(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) == 2, "layout SET DIR")
	l, err := images.Create(ts.MkAbs(args[1]))
	ts.Check(err)
	set, number, _ := strings.Cut(args[0], "=")
	n, _ := strconv.Atoi(number)
	switch set {
	case "sample":
		err = images.Sample(l)
	case "stargz":
		err = images.Stargz(l)
	case "lazy":
		err = images.Lazy(l)
	case "formats":
		err = images.Formats(l)
	case "odd":
		_, err = l.Add(images.Odd(), "localhost/odd:1")
	case "damaged":
		err = images.Damaged(l)
	case "extreme":
		_, err = l.Add(images.Extreme(), "localhost/extreme:1")
	case "layers":
		_, err = l.Add(images.Layers(n), "localhost/layers:1")
	case "many":
		err = images.Many(l, n)
	case "files":
		_, err = l.Add(images.Files(n), "localhost/files:1")
	case "big":
		_, err = l.Add(images.Big(n), "localhost/big:1")
	case "empty":
	default:
		err = fmt.Errorf("no set %q", set)
	}
	ts.Check(errors.Join(err, l.Close()))
}

// hostTar makes an archive for buildah: the first bytes of the files of this machine.
func hostTar(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) > 2, "hosttar FILE BYTES DIR...")
	limit, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	var entries []images.Entry
	for _, dir := range args[2:] {
		some, err := images.Tree(strings.TrimPrefix(dir, "/"), dir, limit)
		ts.Check(err)
		for _, e := range some {
			limit -= e.Size
		}
		entries = append(entries, some...)
		if limit <= 0 {
			break
		}
	}
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Check(errors.Join(images.WriteTar(f, entries), f.Close()))
}

// store gives the script a containers-storage of its own. Programs that are linked to the library find it by
// CONTAINERS_STORAGE_CONF; podman and buildah are also given flags, because podman keeps its own database beside the
// store only then.
func store(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) == 1, "store DRIVER")
	need(ts, false, []string{"podman", "buildah", "skopeo"})
	driver, work := args[0], of(ts).work
	root := filepath.Join(work, "store", "root")
	ts.Check(os.MkdirAll(filepath.Dir(root), 0o700))
	run, err := os.MkdirTemp(current.dir, "r") // podman takes no path of more than 50 characters
	ts.Check(err)
	conf := filepath.Join(work, "store", "storage.conf")
	ts.Check(os.WriteFile(conf, fmt.Appendf(nil, "[storage]\ndriver = %q\ngraphroot = %q\nrunroot = %q\n", driver, root, run), 0o600))
	ts.Setenv("CONTAINERS_STORAGE_CONF", conf)
	ts.Setenv("RUNROOT", run)
	ts.Setenv("STORE", fmt.Sprintf("containers-storage:[%s@%s+%s]", driver, root, run))
	for _, program := range []string{"podman", "buildah"} {
		shim := fmt.Sprintf("#!/bin/sh\nPATH=${PATH#*:}\nexec %s --root %s --runroot %s --storage-driver %s \"$@\"\n", program, root, run, driver)
		ts.Check(of(ts).program(program, shim))
	}
	// The library makes a store's directories when it first opens one.
	ts.Check(ts.Exec("podman", "images", "--quiet"))
}
