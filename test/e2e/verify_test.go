package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sync/errgroup"
)

// hashFile reads a file to its end and returns its SHA-256 as "sha256:..." and how many bytes there were.
func hashFile(path string) (digest string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	size, err = io.Copy(h, f)
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), size, err
}

func sha256Of(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) == 2, "sha256of FILE DIGEST")
	got, _, err := hashFile(ts.MkAbs(args[0]))
	ts.Check(err)
	if want := strings.TrimPrefix(args[1], "sha256:"); got != "sha256:"+want {
		ts.Fatalf("%s: %s, want sha256:%s", args[0], got, want)
	}
}

// checkTree holds each directory in ids/ against what its names promise.
func checkTree(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) == 1, "checktree MOUNTPOINT")
	ids := filepath.Join(ts.MkAbs(args[0]), "ids")
	entries, err := os.ReadDir(ids)
	ts.Check(err)
	layers := 0
	for _, e := range entries {
		if !e.IsDir() || len(e.Name()) != 64 {
			ts.Fatalf("ids/%s is not a directory of 64 hex digits", e.Name())
		}
		n, err := checkImage(filepath.Join(ids, e.Name()), e.Name())
		if err != nil {
			ts.Fatalf("ids/%s: %v", e.Name(), err)
		}
		layers += n
	}
	fmt.Fprintf(ts.Stdout(), "%d images, %d layers\n", len(entries), layers)
}

func checkImage(dir, id string) (layers int, err error) {
	manifest := "manifest.json"
	if exists(filepath.Join(dir, "index.json")) {
		manifest = "index.json"
	}
	err = errors.Join(
		same(filepath.Join(dir, manifest), text(dir, "digest")),
		check(text(dir, "id") == id, "the file id says %s", text(dir, "id")),
	)
	if manifest == "manifest.json" {
		err = errors.Join(err, same(filepath.Join(dir, "config.json"), "sha256:"+id))
	}
	numbers, _ := filepath.Glob(filepath.Join(dir, "layers", "*"))
	for i, layer := range numbers {
		err = errors.Join(err,
			check(filepath.Base(layer) == fmt.Sprintf("%02d", i), "layers: %s is number %d", filepath.Base(layer), i),
			same(filepath.Join(layer, "diff.tar"), text(layer, "diff-id")))
		if blob := filepath.Join(layer, "blob"); exists(blob) {
			err = errors.Join(err, same(blob, text(layer, "digest")))
		}
	}
	return len(numbers), errors.Join(err, jsonFiles(dir))
}

// same says whether a file has the digest and the size that are promised: reading it and stat(2) must agree.
func same(path, want string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	got, size, err := hashFile(path)
	return errors.Join(err,
		check(got == want, "%s: %s, want %s", path, got, want),
		check(size == info.Size(), "%s: stat says %d bytes, read %d", path, info.Size(), size))
}

func jsonFiles(dir string) error {
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || filepath.Ext(p) != ".json" {
			return err
		}
		b, err := os.ReadFile(p)
		return errors.Join(err, check(json.Valid(b), "%s: not JSON: %.60q", p, b))
	})
}

func check(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format, args...)
}

// text is a one-line file without its newline; empty if it cannot be read.
func text(dir, name string) string {
	b, _ := os.ReadFile(filepath.Join(dir, name))
	return strings.TrimSuffix(string(b), "\n")
}

// likePodman compares the tree with `podman image inspect` of all images of the script's store.
func likePodman(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) == 1, "likepodman MOUNTPOINT")
	ts.Check(ts.Exec("sh", "-c", "podman image inspect $(podman images --quiet --no-trunc --all | sort -u)"))
	var images []struct {
		ID                                        string `json:"Id"`
		Digest, Architecture, Os, Author, Comment string
		RepoTags                                  []string
		RootFS                                    struct{ Layers []string }
		Config                                    struct{ Env, Cmd, Entrypoint []string }
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &images))
	for _, img := range images {
		dir := filepath.Join(ts.MkAbs(args[0]), "ids", img.ID)
		lines := func(items []string) string { return strings.Join(items, "\n") }
		err := errors.Join(
			same(filepath.Join(dir, "manifest.json"), img.Digest),
			same(filepath.Join(dir, "config.json"), "sha256:"+img.ID),
		)
		for _, f := range [][2]string{
			{"digest", img.Digest}, {"architecture", img.Architecture}, {"os", img.Os}, {"author", img.Author},
			{"comment", img.Comment}, {"names", lines(img.RepoTags)}, {"env", lines(img.Config.Env)},
			{"cmd", lines(img.Config.Cmd)}, {"entrypoint", lines(img.Config.Entrypoint)},
		} {
			err = errors.Join(err, check(text(dir, f[0]) == f[1], "%s is %q, podman says %q", f[0], text(dir, f[0]), f[1]))
		}
		layers, _ := filepath.Glob(filepath.Join(dir, "layers", "*"))
		err = errors.Join(err, check(len(layers) == len(img.RootFS.Layers), "%d layers, podman says %d", len(layers), len(img.RootFS.Layers)))
		for i, layer := range layers[:min(len(layers), len(img.RootFS.Layers))] {
			err = errors.Join(err, same(filepath.Join(layer, "diff.tar"), img.RootFS.Layers[i]))
		}
		if err != nil {
			ts.Fatalf("ids/%s (%v): %v", img.ID, img.RepoTags, err)
		}
	}
	fmt.Fprintf(ts.Stdout(), "%d images\n", len(images))
}

// randRead reads at random offsets first, when nothing is in the page cache, and holds what it got against a read from the
// beginning to the end, whose digest is known.
func randRead(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) == 2, "randread FILE DIGEST")
	path := ts.MkAbs(args[0])
	info, err := os.Stat(path)
	ts.Check(err)
	type piece struct {
		off  int64
		data []byte
	}
	const readers, pieces, longest = 8, 64, 100_000
	got := make([][]piece, readers)
	var g errgroup.Group
	for i := range readers {
		g.Go(func() error {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			rnd := rand.New(rand.NewPCG(1, uint64(i)))
			for range pieces {
				p := piece{rnd.Int64N(info.Size() + 1), make([]byte, rnd.IntN(longest))}
				n, err := f.ReadAt(p.data, p.off)
				if err != nil && (err != io.EOF || p.off+int64(n) != info.Size()) {
					return fmt.Errorf("reading %d bytes at %d: got %d: %w", len(p.data), p.off, n, err)
				}
				p.data = p.data[:n]
				got[i] = append(got[i], p)
			}
			return nil
		})
	}
	ts.Check(g.Wait())
	sha256Of(ts, false, args)
	f, err := os.Open(path)
	ts.Check(err)
	defer f.Close()
	want := make([]byte, longest)
	for _, ps := range got {
		for _, p := range ps {
			if _, err := f.ReadAt(want[:len(p.data)], p.off); err != nil {
				ts.Fatalf("reading %d bytes at %d again: %v", len(p.data), p.off, err)
			}
			if !bytes.Equal(p.data, want[:len(p.data)]) {
				ts.Fatalf("%s: the %d bytes at %d were wrong", args[0], len(p.data), p.off)
			}
		}
	}
}
