package sourcetest_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/sourcetest"
	"github.com/imgfs/imgfs/test/servers"
)

// TestSpoiltConfig changes a byte of a config where it lies, or takes it away, in all forms that are files and in a registry: what
// it says is damaged then and never absent, and what the manifest says is there, with the layers' blobs.
func TestSpoiltConfig(t *testing.T) {
	for name, how := range map[string]func([]byte) []byte{"rotten": rot, "missing": func([]byte) []byte { return nil }} {
		names := []string{"oci", "oci-archive", "oci-archive, compressed", "dir"}
		for _, f := range forms {
			if slices.Contains(names, f.name) {
				t.Run(name+"/"+f.name, func(t *testing.T) {
					s := newApp(t)
					sound := *s.images[0]
					spoilConfig(t, s, how)
					listed := 0
					for _, p := range f.make(t, s, s.images) {
						if checkSpoiltConfig(t, p.open(t), &sound) {
							listed++
						}
					}
					if listed != 1 {
						t.Errorf("it is listed at %d places", listed)
					}
				})
			}
		}
		t.Run(name+"/docker", func(t *testing.T) {
			s := newApp(t)
			img := s.images[0]
			host := func(t *testing.T) string {
				return servers.Serve(t, spoiling(servers.NewRegistry(), digest.FromBytes(img.Config), how))
			}
			for _, p := range inRegistry(host, true, false)(t, s, s.images) {
				if !checkSpoiltConfig(t, p.open(t), img) {
					t.Error("it is not listed")
				}
			}
		})
	}
}

func spoilConfig(t *testing.T, s *sample, how func([]byte) []byte) {
	t.Helper()
	file := filepath.Join(s.dir, "blobs", "sha256", digest.FromBytes(s.images[0].Config).Encoded())
	s.images[0].Config = how(s.images[0].Config)
	err := os.Remove(file)
	if s.images[0].Config != nil {
		err = os.WriteFile(file, s.images[0].Config, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// checkSpoiltConfig says whether the source lists the image, which is checked then.
func checkSpoiltConfig(t *testing.T, src imgsrc.Source, want *sourcetest.Image) (listed bool) {
	t.Helper()
	defer src.Close()
	l, err := src.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(l.Images, func(img imgsrc.Listed) bool { return img.Desc().Digest == want.Digest })
	if i < 0 {
		return false
	}
	img := l.Images[i]
	f, err := imgsrc.Load(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	if f.ManifestErr != nil || !errors.Is(f.ConfigErr, imgsrc.ErrDamaged) || errors.Is(f.ConfigErr, imgsrc.ErrAbsent) {
		t.Errorf("the manifest: %v, the config: %v", f.ManifestErr, f.ConfigErr)
	}
	for name, value := range map[string]func(*imgsrc.Facts) ([]byte, error){"os": imgsrc.OS, "user": imgsrc.User, "history": imgsrc.HistoryJSON, "volumes": imgsrc.Volumes} {
		if b, err := value(f); !errors.Is(err, imgsrc.ErrDamaged) || errors.Is(err, imgsrc.ErrAbsent) {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	for n := range want.Layers {
		c, err := img.Blob(t.Context(), want.Layers[n].Digest)
		if err != nil {
			t.Errorf("layer %d: %v", n, err)
			continue
		}
		b, err := sourcetest.ReadAll(t.Context(), c)
		if err := errors.Join(err, c.Close()); err != nil || !bytes.Equal(b, want.Layers[n].Blob) {
			t.Errorf("layer %d: %d bytes, %v", n, len(b), err)
		}
	}
	return true
}
