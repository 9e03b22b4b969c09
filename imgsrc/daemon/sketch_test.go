package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/imgsrc"
)

func TestSketchOf(t *testing.T) {
	for name, c := range map[string]struct{ inspected, config, withheld string }{
		"all": {
			`{"Created":"2024-01-02T03:04:05.123456789Z","Author":"a","Architecture":"arm64","Variant":"v8","Os":"linux","Comment":"c","Config":{"User":"u","Env":["A"],"Cmd":["c"],"Hostname":"h","Healthcheck":{"Test":["NONE"]}}}`,
			`{"architecture":"arm64","author":"a","config":{"Cmd":["c"],"Env":["A"],"User":"u"},"created":"2024-01-02T03:04:05.123456789Z","os":"linux","variant":"v8"}`,
			"[Healthcheck]",
		},
		"what is empty":          {`{"Created":"","Author":"","Config":{"User":"","Env":null,"Cmd":[],"Labels":{},"WorkingDir":"","Healthcheck":null}}`, `{}`, "[]"},
		"no config":              {`{"Created":"0001-01-01T00:00:00Z","Config":null}`, `{}`, "[]"},
		"a time of fewer digits": {`{"Created":"2024-01-02T03:04:05.12345678Z"}`, `{}`, "[created]"},
		"an engine's own system": {`{"Architecture":"","Os":"linux"}`, `{}`, "[]"},
	} {
		s := sketchOf([]byte(c.inspected), false)
		if s == nil || string(s.Config) != c.config || fmt.Sprint(s.Withheld) != c.withheld {
			t.Errorf("%s: %s", name, jsonOf(t, s))
		}
	}
	for name, inspected := range map[string]string{
		"no JSON": `{`, "no time": `{"Created":"yesterday"}`, "too much": `{"Author":"` + strings.Repeat("a", maxSketch) + `"}`,
	} {
		if s := sketchOf([]byte(inspected), false); s != nil {
			t.Errorf("%s: %s", name, jsonOf(t, s))
		}
	}
}

// loadConfig loads an image of one layer with this config, but for its layers.
func (d *dockerd) loadConfig(name, config string) {
	d.Helper()
	l := tarOf(d.TB, tarFile{name: "file", body: []byte(name)})
	var doc map[string]any
	if err := json.Unmarshal([]byte(config), &doc); err != nil {
		d.Fatal(err)
	}
	doc["rootfs"] = map[string]any{"type": "layers", "diff_ids": partsOf(d.TB, l).diffIDs()}
	file := filepath.Join(d.TempDir(), "image.tar")
	archive := tarOf(d.TB, tarFile{name: "config.json", body: jsonOf(d.TB, doc)}, tarFile{name: "layer.tar", body: l},
		tarFile{name: "manifest.json", body: jsonOf(d.TB, []any{map[string]any{"Config": "config.json", "RepoTags": []string{name}, "Layers": []string{"layer.tar"}}})})
	if err := os.WriteFile(file, archive, 0o600); err != nil {
		d.Fatal(err)
	}
	d.Docker("load", "-q", "-i", file)
}

// What an engine tells of an image is what the image says, whatever the config is like.
func TestRealSketch(t *testing.T) {
	d := startDockerd(t)
	d.populate()
	const rest = `"architecture":"arm64","os":"linux"`
	d.loadConfig("full:1", `{`+rest+`,"variant":"v8","author":"a <b>","comment":"c","created":"2020-01-02T03:04:05.123456789Z",
		"config":{"User":"u","Env":["A=1","A=2",""," x"],"Cmd":["a\nb"],"Entrypoint":["e"],"ExposedPorts":{"80":{},"53/udp":{},"443/TCP":{}},
		"Volumes":{"/b":{},"a":{}},"WorkingDir":"w/","StopSignal":"9","Labels":{"a":"\ud83d\ude00<&>","":"x"},"Healthcheck":{"Test":["NONE"],"StartInterval":5}}}`)
	d.loadConfig("empty:1", `{`+rest+`,"variant":"","author":"","comment":"","created":"2020-01-02T03:04:05.120Z",
		"config":{"User":"","Env":[],"Cmd":[],"Entrypoint":null,"ExposedPorts":{},"Volumes":{},"WorkingDir":"","StopSignal":"","Labels":{}},"history":[]}`)
	d.loadConfig("bare:1", `{"history":[{"comment":"first"},{"comment":"last","empty_layer":true}]}`)
	d.loadConfig("old:1", `{`+rest+`,"created":"1969-01-01T00:00:00+02:00","config":{"Cmd":"a shell's"}}`)
	s := openSource(t, Options{Host: d.Host})
	told := map[string]func(*imgsrc.Facts) ([]byte, error){
		"created": imgsrc.CreatedText, "author": imgsrc.Author, "comment": imgsrc.Comment, "architecture": imgsrc.Architecture, "os": imgsrc.OS,
		"variant": imgsrc.Variant, "user": imgsrc.User, "env": imgsrc.Env, "entrypoint": imgsrc.Entrypoint, "cmd": imgsrc.Cmd, "workdir": imgsrc.WorkDir,
		"exposed-ports": imgsrc.ExposedPorts, "volumes": imgsrc.Volumes, "stop-signal": imgsrc.StopSignal, "healthcheck": imgsrc.Healthcheck,
		"labels.json": imgsrc.LabelsJSON, "history": imgsrc.HistoryText, "id": imgsrc.IDText, "digest": imgsrc.DigestText,
		"diff-id": func(f *imgsrc.Facts) ([]byte, error) { return imgsrc.LayerDiffID(f, 0) },
	}
	all := map[string][]string{}
	l, err := s.List(t.Context())
	if err != nil || len(l.Problems) > 0 {
		t.Fatal(err, l)
	}
	for _, img := range l.Images {
		name := img.Names[0]
		sketch := img.Image.(imgsrc.Sketcher).Sketch()
		if sketch == nil {
			t.Errorf("%s: nothing is told", name)
			continue
		}
		early := sketch.Facts(img.Desc())
		facts, err := imgsrc.Load(t.Context(), img)
		if err != nil {
			t.Fatal(err)
		}
		if img.Image.(imgsrc.Sketcher).Sketch() != nil {
			t.Errorf("%s: there is a sketch of what has been saved", name)
		}
		if when, _ := facts.Created(); !sketch.Created.Equal(when) {
			t.Errorf("%s: made at %s, and told %s", name, when, sketch.Created)
		}
		for what, of := range told {
			got, gotErr := of(early)
			want, wantErr := of(facts)
			switch {
			case gotErr == nil && (wantErr != nil || !bytes.Equal(got, want)):
				t.Errorf("%s: %s is told as %q, and is %q, %v", name, what, got, want, wantErr)
			case gotErr == nil:
				all[name] = append(all[name], what)
			case !errors.Is(gotErr, imgsrc.ErrUntold):
				t.Errorf("%s: %s: %v", name, what, gotErr)
			case !errors.Is(gotErr, imgsrc.ErrUnsure) && wantErr != nil:
				t.Errorf("%s: %s is told to be there, and is not: %v", name, what, wantErr)
			}
		}
	}
	for name, want := range map[string]string{
		"full:1":  "architecture author cmd created diff-id entrypoint env exposed-ports id labels.json os stop-signal user variant volumes workdir",
		"empty:1": "architecture diff-id id os",
		"bare:1":  "diff-id id",
		"old:1":   "architecture cmd diff-id id os",
	} {
		got := all["docker.io/library/"+name]
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("of %s is told: %v", name, got)
		}
	}
}
