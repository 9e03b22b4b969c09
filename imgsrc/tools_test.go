package imgsrc

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/test/needs"
)

// store is a containers-storage of its own. The vfs driver leaves no mounts behind.
type store struct {
	t         *testing.T
	root, dir string
}

func newStore(t *testing.T) *store {
	needs.Programs(t, "podman", "buildah", "skopeo")
	dir := t.TempDir()
	return &store{t, filepath.Join(dir, "root"), dir}
}

func (s *store) run(tool string, args ...string) string {
	s.t.Helper()
	global := []string{"--root", s.root, "--runroot", filepath.Join(s.dir, "run"), "--storage-driver", "vfs"}
	return needs.Line(s.t, tool, append(global, args...)...)
}

func (s *store) ref(name string) string {
	return "containers-storage:[vfs@" + s.root + "+" + filepath.Join(s.dir, "run") + "]" + name
}

// build makes an image of two layers with every setting that buildah has.
func (s *store) build(name, format string) {
	s.t.Helper()
	base := s.commit("scratch", "localhost/base:1", format)
	s.commit(base, name, format, "--label", "a/b=<c>", "--label", "empty=", "--annotation", "x=<y>", "--env", "K=a b", "--env", "L=",
		"--cmd", `sh -c "a b"`, "--entrypoint", `["/entry","x"]`, "--author", "Ann <a&b>", "--port", "80/tcp", "--port", "443/tcp",
		"--volume", "/data", "--workingdir", "/w", "--user", "1:2", "--stop-signal", "SIGINT", "--comment", "a comment",
		"--healthcheck", "CMD-SHELL a && b", "--healthcheck-interval", "5s", "--onbuild", "RUN x", "--hostname", "h",
		"--domainname", "d", "--shell", "/bin/bash", "--arch", "arm64", "--variant", "v8")
}

// commit makes an image with one more layer than from.
func (s *store) commit(from, name, format string, config ...string) string {
	s.t.Helper()
	file := filepath.Join(s.dir, "file")
	if err := os.WriteFile(file, []byte(name), 0o644); err != nil {
		s.t.Fatal(err)
	}
	c := s.run("buildah", "from", from)
	s.run("buildah", "copy", c, file, "/"+filepath.Base(name))
	if len(config) > 0 {
		s.run("buildah", append(append([]string{"config"}, config...), c)...)
	}
	s.run("buildah", "commit", "--quiet", "--format", format, c, name)
	s.run("buildah", "rm", c)
	return name
}

// factsOf reads an image with skopeo.
func factsOf(t *testing.T, ref string) *Facts {
	t.Helper()
	return load(t, []byte(needs.Run(t, "skopeo", "inspect", "--raw", ref)), []byte(needs.Run(t, "skopeo", "inspect", "--raw", "--config", ref)))
}

func wantJSON(t *testing.T, what string, got, want []byte) {
	t.Helper()
	var g, w any
	if err := json.Unmarshal(got, &g); err != nil {
		t.Fatalf("%s: %v in %q", what, err, got)
	}
	if err := json.Unmarshal(want, &w); err != nil {
		t.Fatalf("%s: %v in %q", what, err, want)
	}
	if !reflect.DeepEqual(g, w) {
		t.Errorf("%s:\n%s\nwant\n%s", what, got, want)
	}
}

// joined is the lines of a sorted set.
func joined[V any](m map[string]V) string { return strings.Join(slices.Sorted(maps.Keys(m)), "\n") }

// TestAgainstPodman compares single values and the history with "podman inspect" and "podman history".
func TestAgainstPodman(t *testing.T) {
	s := newStore(t)
	s.build("localhost/oci:1", "oci")
	s.build("localhost/docker:1", "docker")
	archive := filepath.Join(s.dir, "root.tar")
	needs.Run(t, "tar", "--create", "--file", archive, "--directory", s.dir, "file")
	s.run("podman", "import", "--message", "an import", archive, "localhost/import:1")

	for _, name := range []string{"localhost/oci:1", "localhost/docker:1", "localhost/import:1"} {
		t.Run(name, func(t *testing.T) {
			s := &store{t, s.root, s.dir}
			f := factsOf(t, s.ref(name))
			var inspected []struct {
				Digest, Created, Author, Architecture, Os, Comment, ManifestType string
				Config                                                           struct {
					User, WorkingDir, StopSignal string
					Env, Entrypoint, Cmd         []string
					ExposedPorts, Volumes        map[string]struct{}
				}
				Labels, Annotations map[string]string
				RootFS              struct{ Layers []string }
				Healthcheck         json.RawMessage
			}
			if err := json.Unmarshal([]byte(s.run("podman", "inspect", name)), &inspected); err != nil {
				t.Fatal(err)
			}
			p := inspected[0]
			for _, tt := range []struct {
				name string
				get  func(*Facts) ([]byte, error)
				want string
			}{
				{"digest", DigestText, p.Digest}, {"created", CreatedText, p.Created}, {"author", Author, p.Author},
				{"architecture", Architecture, p.Architecture}, {"os", OS, p.Os}, {"comment", Comment, p.Comment},
				{"media-type", MediaTypeText, p.ManifestType}, {"user", User, p.Config.User}, {"workdir", WorkDir, p.Config.WorkingDir},
				{"stop-signal", StopSignal, p.Config.StopSignal}, {"env", Env, strings.Join(p.Config.Env, "\n")},
				{"entrypoint", Entrypoint, strings.Join(p.Config.Entrypoint, "\n")}, {"cmd", Cmd, strings.Join(p.Config.Cmd, "\n")},
				{"exposed-ports", ExposedPorts, joined(p.Config.ExposedPorts)}, {"volumes", Volumes, joined(p.Config.Volumes)},
			} {
				// podman shows "" for what is absent too.
				if got, err := tt.get(f); strings.TrimSuffix(string(got), "\n") != tt.want {
					t.Errorf("%s = %q, %v; podman says %q", tt.name, got, err, tt.want)
				}
			}
			if got, _ := Labels(f); !maps.Equal(got, p.Labels) {
				t.Errorf("labels %q, podman says %q", got, p.Labels)
			}
			if got, _ := Annotations(f); !maps.Equal(got, p.Annotations) {
				t.Errorf("annotations %q, podman says %q", got, p.Annotations)
			}
			if got, err := Healthcheck(f); p.Healthcheck != nil {
				wantJSON(t, "healthcheck", got, p.Healthcheck)
			} else if err == nil {
				t.Errorf("healthcheck %s, podman has none", got)
			}
			var diffIDs []string
			for _, l := range f.Layers {
				diffIDs = append(diffIDs, string(l.DiffID))
			}
			if !slices.Equal(diffIDs, p.RootFS.Layers) {
				t.Errorf("diff ids %q, podman says %q", diffIDs, p.RootFS.Layers)
			}
			checkHistory(t, f, s.run("podman", "history", "--no-trunc", "--format", "json", name))
		})
	}
}

func checkHistory(t *testing.T, f *Facts, podman string) {
	t.Helper()
	type entry struct {
		Created   string `json:"created"`
		CreatedBy string
		Comment   string `json:"comment"`
		Size      int64  `json:"size"`
	}
	// encoding/json would take podman's second "Created", which is cut to seconds, for the first.
	podman = strings.ReplaceAll(podman, `"Created":`, `"CreatedSeconds":`)
	var got, want []entry
	b, err := HistoryJSON(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(podman), &want); err != nil {
		t.Fatal(err)
	}
	slices.Reverse(want)
	if !slices.Equal(got, want) {
		t.Errorf("history %+v, podman says %+v", got, want)
	}
	table, err := HistoryText(f)
	if err != nil {
		t.Fatal(err)
	}
	rows := strings.Split(strings.TrimSuffix(string(table), "\n"), "\n")
	if len(rows) != len(want)+1 {
		t.Fatalf("%d rows for %d entries:\n%s", len(rows), len(want), table)
	}
	for i, e := range want {
		if !strings.Contains(rows[i+1], e.Created) || !strings.Contains(rows[i+1], e.CreatedBy) || !strings.HasSuffix(rows[i+1], e.Comment) {
			t.Errorf("row %q does not show %+v", rows[i+1], e)
		}
	}
}

// TestAgainstSkopeo compares the two forms of a config with what skopeo converts.
func TestAgainstSkopeo(t *testing.T) {
	s := newStore(t)
	s.build("localhost/oci:1", "oci")
	s.build("localhost/docker:1", "docker")

	t.Run("OCI to Docker", func(t *testing.T) {
		f := factsOf(t, s.ref("localhost/oci:1"))
		dir := "dir:" + t.TempDir()
		needs.Run(t, "skopeo", "copy", "--quiet", "--format", "v2s2", s.ref("localhost/oci:1"), dir)
		converted := factsOf(t, dir)
		if converted.mediaType != typeDockerManifest {
			t.Fatalf("skopeo made a %s", converted.mediaType)
		}
		got, err := ConfigDocker(f)
		if err != nil {
			t.Fatal(err)
		}
		wantJSON(t, "config.docker.json", got, converted.Config)
		// And back: the Docker form of an OCI image says as an OCI config what the image said.
		got, err = ConfigOCI(converted)
		if err != nil {
			t.Fatal(err)
		}
		wantJSON(t, "config.oci.json", got, f.Config)
	})
	t.Run("Docker to OCI", func(t *testing.T) {
		f := factsOf(t, s.ref("localhost/docker:1"))
		if !f.docker {
			t.Fatalf("buildah made a %s", f.mediaType)
		}
		got, err := ConfigOCI(f)
		if err != nil {
			t.Fatal(err)
		}
		wantJSON(t, "skopeo inspect --config", got, []byte(needs.Run(t, "skopeo", "inspect", "--config", s.ref("localhost/docker:1"))))
		layout := "oci:" + filepath.Join(t.TempDir(), "layout")
		needs.Run(t, "skopeo", "copy", "--quiet", "--format", "oci", s.ref("localhost/docker:1"), layout)
		wantJSON(t, "skopeo copy --format oci", got, factsOf(t, layout).Config)
		if got, err := ConfigDocker(f); err != nil || !bytes.Equal(got, f.Config) {
			t.Errorf("ConfigDocker is not the config's bytes: %v", err)
		}
	})
}
