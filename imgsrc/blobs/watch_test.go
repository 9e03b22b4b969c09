package blobs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// watching runs WatchFile, and returns what it has called and what it ended with.
func watching(ctx context.Context, t *testing.T, file string) (calls <-chan struct{}, ended <-chan error) {
	t.Helper()
	called, end := make(chan struct{}, 100), make(chan error, 1)
	go func() { end <- WatchFile(ctx, file, func() { called <- struct{}{} }) }()
	return called, end
}

func wait[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(20 * time.Second):
		t.Fatal("not seen: " + what)
	}
	return v
}

func TestWatchFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "index.json")
	ctx, cancel := context.WithCancel(t.Context())
	calls, ended := watching(ctx, t, file)
	wait(t, "that it began", calls)
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"making it", func() error { return os.WriteFile(file, []byte("{}"), 0o644) }},
		{"writing to it", func() error { return os.WriteFile(file, []byte("{} "), 0o644) }},
		{"replacing it", func() error {
			return errors.Join(os.WriteFile(file+".new", nil, 0o644), os.Rename(file+".new", file))
		}},
		{"removing it", func() error { return os.Remove(file) }},
	} {
		for len(calls) > 0 {
			<-calls
		}
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		wait(t, step.what, calls)
	}
	cancel()
	if err := wait(t, "the end", ended); err != nil {
		t.Error(err)
	}
}

// A directory that goes may come back: that is how layouts are rebuilt.
func TestWatchFileOfGoneDirectory(t *testing.T) {
	for name, remove := range map[string]func(dir string) error{
		"removed": os.RemoveAll,
		"renamed": func(dir string) error { return os.Rename(dir, dir+".old") },
	} {
		dir := filepath.Join(t.TempDir(), "below")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "archive.tar")
		ctx, cancel := context.WithCancel(t.Context())
		calls, ended := watching(ctx, t, file)
		wait(t, "that it began", calls)
		if err := remove(dir); err != nil {
			t.Fatal(err)
		}
		wait(t, name, calls)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		wait(t, "that it came back", calls)
		if err := os.WriteFile(file, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		wait(t, "the file in it", calls)
		cancel()
		if err := wait(t, "the end", ended); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
