package dir

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// An index's manifests come one after the other, and each is one more image.
func TestWatchManifests(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{manifestFile, versionFile} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("{}"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	then := time.Now().Add(-time.Hour) // so that its time is another when something comes, however coarse the file system's clock is
	if err := os.Chtimes(dir, then, then); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	calls, ended := make(chan struct{}, 100), make(chan error, 1)
	go func() { ended <- s.Watch(ctx, func() { calls <- struct{}{} }) }()
	see := func(what string) {
		t.Helper()
		select {
		case <-calls:
		case <-time.After(20 * time.Second):
			t.Fatal("not seen: " + what)
		}
	}
	see("that it began")
	was := s.Stamp()
	if err := os.WriteFile(filepath.Join(dir, strings.Repeat("0", 64)+"."+manifestFile), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	see("a manifest")
	if s.Stamp() == was {
		t.Error("the stamp is the same")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
