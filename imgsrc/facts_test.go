package imgsrc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// fakeImage is an image that consists of its manifest and config.
type fakeImage struct {
	desc               Desc
	manifest, config   []byte
	manifestE, configE error
	onRead             func()
}

func (i *fakeImage) Desc() Desc { return i.desc }
func (i *fakeImage) Manifest(context.Context) ([]byte, error) {
	if i.onRead != nil {
		i.onRead()
	}
	return i.manifest, i.manifestE
}
func (i *fakeImage) Config(context.Context) ([]byte, error)               { return i.config, i.configE }
func (i *fakeImage) Blob(context.Context, digest.Digest) (Content, error) { return nil, ErrAbsent }
func (i *fakeImage) Diff(context.Context, int) (Content, error)           { return nil, ErrAbsent }
func (i *fakeImage) Files(context.Context, int) (Files, error)            { return nil, ErrAbsent }

// newFake returns an image of these bytes; a nil config is an absent one.
func newFake(manifest, config []byte) *fakeImage {
	i := &fakeImage{
		desc:     Desc{ID: strings.Repeat("0a", 32), Digest: digest.FromBytes(manifest), Size: int64(len(manifest))},
		manifest: manifest, config: config,
	}
	if config == nil {
		i.configE = ErrAbsent
	}
	return i
}

func load(t testing.TB, manifest, config []byte) *Facts {
	t.Helper()
	f, err := Load(t.Context(), newFake(manifest, config))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

type fileFunc struct {
	name string
	json bool
	get  func(*Facts) ([]byte, error)
}

// fileFuncs are all the functions that make a file of an image.
var fileFuncs = []fileFunc{
	{"ConfigOCI", true, ConfigOCI}, {"ConfigDocker", true, ConfigDocker},
	{"HistoryText", false, HistoryText}, {"HistoryJSON", true, HistoryJSON},
	{"AnnotationsJSON", true, AnnotationsJSON}, {"LabelsJSON", true, LabelsJSON},
	{"DigestText", false, DigestText}, {"IDText", false, IDText}, {"CreatedText", false, CreatedText},
	{"Author", false, Author}, {"Comment", false, Comment}, {"Architecture", false, Architecture}, {"OS", false, OS},
	{"Variant", false, Variant}, {"SizeText", false, SizeText}, {"MediaTypeText", false, MediaTypeText},
	{"User", false, User}, {"Env", false, Env}, {"Entrypoint", false, Entrypoint}, {"Cmd", false, Cmd},
	{"WorkDir", false, WorkDir}, {"ExposedPorts", false, ExposedPorts}, {"Volumes", false, Volumes},
	{"StopSignal", false, StopSignal}, {"Healthcheck", true, Healthcheck},
	{"ArtifactTypeText", false, ArtifactTypeText}, {"SubjectText", false, SubjectText},
	{"InspectJSON", true, func(f *Facts) ([]byte, error) {
		return InspectJSON(f, Standing{Names: []string{"localhost/a:1"}, Parent: "0b", Unpacked: 7})
	}},
	{"InfoJSON", true, func(f *Facts) ([]byte, error) {
		return InfoJSON(f, func(d digest.Digest) (string, *bool) {
			is := d == f.Children[0].Digest
			return "0c", &is
		})
	}},
	{"InspectJSON without a standing", true, func(f *Facts) ([]byte, error) { return InspectJSON(f, Standing{}) }},
}

// withDiffIDs are the functions that say more once the diff ids have been found out.
func withDiffIDs(f *Facts) []fileFunc {
	ids := make([]digest.Digest, len(f.Layers))
	for i := range ids {
		ids[i] = digest.FromString(fmt.Sprint("layer ", i))
	}
	full := f.WithDiffIDs(ids)
	return []fileFunc{
		{"ConfigOCI with diff ids", true, func(*Facts) ([]byte, error) { return ConfigOCI(full) }},
		{"ConfigDocker with diff ids", true, func(*Facts) ([]byte, error) { return ConfigDocker(full) }},
		{"LayerDiffID(0) with diff ids", false, func(*Facts) ([]byte, error) { return LayerDiffID(full, 0) }},
	}
}

// layerFuncs are those that make a file of layer n.
func layerFuncs(n int) []fileFunc {
	of := func(name string, get func(*Facts, int) ([]byte, error)) fileFunc {
		return fileFunc{fmt.Sprintf("%s(%d)", name, n), false, func(f *Facts) ([]byte, error) { return get(f, n) }}
	}
	return []fileFunc{
		of("LayerDigest", LayerDigest), of("LayerDiffID", LayerDiffID), of("LayerMediaType", LayerMediaType),
		of("LayerSize", LayerSize), of("LayerCreatedBy", LayerCreatedBy),
		{fmt.Sprintf("LayerInfoJSON(%d)", n), true, func(f *Facts) ([]byte, error) {
			return LayerInfoJSON(f, n, LayerState{Diff: true, Files: true, WhyNot: "the store keeps no blobs"})
		}},
	}
}

func allFuncs(f *Facts) []fileFunc {
	all := append([]fileFunc{}, fileFuncs...)
	if f.LacksDiffIDs() {
		all = append(all, withDiffIDs(f)...)
	}
	for n := range min(len(f.Layers), 5) {
		all = append(all, layerFuncs(n)...)
	}
	return append(all, layerFuncs(len(f.Layers))...)
}

// describe writes down everything that f says.
func describe(f *Facts) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "Kind: %v\nManifestErr: %v\nConfigErr: %v\n", f.Kind, f.ManifestErr, f.ConfigErr)
	created, ok := f.Created()
	fmt.Fprintf(&b, "Created: %v %v\n", created, ok)
	for i, l := range f.Layers {
		fmt.Fprintf(&b, "Layer %d: %q %q %q %d %q %q %q\n", i, l.Digest, l.DiffID, l.MediaType, l.Size, l.CreatedBy, l.Title, l.Annotations)
	}
	for i, c := range f.Children {
		fmt.Fprintf(&b, "Child %d: %q %q %q %d %+v\n", i, c.Name, c.Digest, c.MediaType, c.Size, c.Platform)
	}
	for _, ff := range allFuncs(f) {
		out, err := ff.get(f)
		switch {
		case errors.Is(err, ErrAbsent):
			fmt.Fprintf(&b, "-- %s -- absent\n", ff.name)
		case err != nil:
			fmt.Fprintf(&b, "-- %s -- %v\n", ff.name, err)
		case !bytes.HasSuffix(out, []byte("\n")):
			fmt.Fprintf(&b, "-- %s -- %d bytes, no newline at the end\n%s\n", ff.name, len(out), out)
		default:
			fmt.Fprintf(&b, "-- %s --\n%s", ff.name, out)
		}
	}
	return b.Bytes()
}

func readCase(t testing.TB, dir string) (manifest, config []byte) {
	t.Helper()
	manifest, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	config, err = os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return manifest, config
}

func cases(t testing.TB) []string {
	t.Helper()
	dirs, err := filepath.Glob("testdata/facts/*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	return dirs
}

// TestGolden compares all that is said of each case with golden.txt beside it. UPDATE=1 writes them anew.
func TestGolden(t *testing.T) {
	for _, dir := range cases(t) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			manifest, config := readCase(t, dir)
			got := describe(load(t, manifest, config))
			golden := filepath.Join(dir, "golden.txt")
			if os.Getenv("UPDATE") == "1" {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s differs (UPDATE=1 writes it anew); got:\n%s", golden, got)
			}
		})
	}
}

func TestLoadErrors(t *testing.T) {
	good := []byte(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:` +
		strings.Repeat("1", 64) + `","size":2},"layers":[]}`)
	other := errors.New("input/output error")

	t.Run("gone", func(t *testing.T) {
		img := newFake(nil, nil)
		img.manifestE = fmt.Errorf("opening blob: %w", ErrNotFound)
		if f, err := Load(t.Context(), img); f != nil || !errors.Is(err, ErrNotFound) {
			t.Errorf("Load = %v, %v", f, err)
		}
	})
	t.Run("gone between the reads", func(t *testing.T) {
		img := newFake(good, nil)
		img.configE = ErrNotFound
		if f, err := Load(t.Context(), img); f != nil || !errors.Is(err, ErrNotFound) {
			t.Errorf("Load = %v, %v", f, err)
		}
	})
	t.Run("context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		img := newFake(nil, nil)
		img.manifestE, img.onRead = fmt.Errorf("reading: %w", ErrDamaged), cancel
		if f, err := Load(ctx, img); f != nil || !errors.Is(err, context.Canceled) {
			t.Errorf("Load = %v, %v", f, err)
		}
	})
	t.Run("unreadable manifest", func(t *testing.T) {
		img := newFake(nil, []byte(`{"architecture":"amd64","config":{"User":"u"}}`))
		img.manifestE = other
		f, err := Load(t.Context(), img)
		if err != nil {
			t.Fatal(err)
		}
		if f.Manifest != nil || !errors.Is(f.ManifestErr, other) {
			t.Errorf("manifest %q, %v", f.Manifest, f.ManifestErr)
		}
		if got, err := User(f); string(got) != "u\n" || err != nil {
			t.Errorf("User = %q, %v: the config is there", got, err)
		}
		for _, get := range []func(*Facts) ([]byte, error){SizeText, AnnotationsJSON} {
			if _, err := get(f); !errors.Is(err, other) || errors.Is(err, ErrAbsent) {
				t.Errorf("what stands in the manifest: %v, want its error", err)
			}
		}
		if _, err := LayerDigest(f, 0); !errors.Is(err, other) {
			t.Errorf("LayerDigest: %v", err)
		}
	})
	t.Run("unreadable config", func(t *testing.T) {
		img := newFake(good, nil)
		img.configE = other
		f, err := Load(t.Context(), img)
		if err != nil {
			t.Fatal(err)
		}
		if f.Config != nil || !errors.Is(f.ConfigErr, other) {
			t.Errorf("config %q, %v", f.Config, f.ConfigErr)
		}
		for _, get := range []func(*Facts) ([]byte, error){User, ConfigOCI, ConfigDocker, HistoryText, LabelsJSON} {
			if _, err := get(f); !errors.Is(err, other) || errors.Is(err, ErrAbsent) {
				t.Errorf("what stands in the config: %v, want its error", err)
			}
		}
	})
	t.Run("too large", func(t *testing.T) {
		f := load(t, append(good, bytes.Repeat([]byte(" "), MaxManifest)...), []byte("{}"))
		if f.Manifest != nil || !errors.Is(f.ManifestErr, ErrDamaged) {
			t.Errorf("%d bytes of manifest, %v", len(f.Manifest), f.ManifestErr)
		}
	})
}

// TestJunk gives Load manifests and configs that are damaged in one way each.
func TestJunk(t *testing.T) {
	sha := "sha256:" + strings.Repeat("1", 64)
	desc := `{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + sha + `","size":2}`
	manifests := map[string]string{
		"empty":            ``,
		"null":             `null`,
		"list":             `[]`,
		"string":           `"x"`,
		"nothing in it":    `{}`,
		"trailing":         `{"config":` + desc + `,"layers":[]}x`,
		"deep":             `{"config":` + strings.Repeat(`{"a":`, 50_000) + `1` + strings.Repeat(`}`, 50_000) + `}`,
		"null config":      `{"config":null,"layers":[]}`,
		"config list":      `{"config":[],"layers":[]}`,
		"null layer":       `{"config":` + desc + `,"layers":[null]}`,
		"layers object":    `{"config":` + desc + `,"layers":{}}`,
		"layer string":     `{"config":` + desc + `,"layers":["` + sha + `"]}`,
		"negative size":    `{"config":` + desc + `,"layers":[{"digest":"` + sha + `","size":-1}]}`,
		"size too large":   `{"config":` + desc + `,"layers":[{"digest":"` + sha + `","size":9223372036854775808}]}`,
		"size with point":  `{"config":` + desc + `,"layers":[{"digest":"` + sha + `","size":1.5}]}`,
		"digest with path": `{"config":` + desc + `,"layers":[{"digest":"sha256:../../etc/passwd","size":1}]}`,
		"no digest":        `{"config":` + desc + `,"layers":[{"size":1}]}`,
		"NUL in digest":    `{"config":` + desc + `,"layers":[{"digest":"x:a\u0000b","size":1}]}`,
		"null annotation":  `{"config":` + desc + `,"layers":[{"digest":"` + sha + `","annotations":{"a":null}}]}`,
		"huge list":        `{"config":` + desc + `,"layers":[` + strings.TrimSuffix(strings.Repeat(`{},`, 1_000_000), ",") + `]}`,
		"media type":       `{"mediaType":5,"config":` + desc + `,"layers":[]}`,
		"other format":     `{"mediaType":"application/vnd.oci.image.index.v1+json","config":` + desc + `,"layers":[]}`,
		"both formats":     `{"manifests":[],"config":` + desc + `,"layers":[]}`,
		"null in index":    `{"manifests":[null]}`,
		"schema 1 history": `{"schemaVersion":1,"fsLayers":[{"blobSum":"` + sha + `"}],"history":[]}`,
	}
	for name, m := range manifests {
		t.Run("manifest/"+name, func(t *testing.T) {
			f := load(t, []byte(m), []byte(`{"os":"linux"}`))
			if !errors.Is(f.ManifestErr, ErrDamaged) {
				t.Errorf("ManifestErr = %v", f.ManifestErr)
			}
			if string(f.Manifest) != m {
				t.Error("the bytes are not shown as they are")
			}
			if len(f.Layers) != 0 {
				t.Errorf("layers of a manifest that says nothing: %v", f.Layers)
			}
		})
	}
	good := []byte(`{"config":` + desc + `,"layers":[]}`)
	for name, c := range map[string]string{
		"empty": ``, "null": `null`, "list": `[]`, "trailing": `{} {}`, "half": `{"os":"linux`,
		"deep": strings.Repeat(`[`, 20_000) + strings.Repeat(`]`, 20_000),
	} {
		t.Run("config/"+name, func(t *testing.T) {
			f := load(t, good, []byte(c))
			if f.ManifestErr != nil || !errors.Is(f.ConfigErr, ErrDamaged) {
				t.Errorf("ManifestErr = %v, ConfigErr = %v", f.ManifestErr, f.ConfigErr)
			}
			if _, err := ConfigOCI(f); !errors.Is(err, ErrDamaged) {
				t.Errorf("ConfigOCI: %v", err)
			}
			if _, err := OS(f); !errors.Is(err, ErrDamaged) {
				t.Errorf("OS: %v", err)
			}
		})
	}
	t.Run("duplicate keys", func(t *testing.T) {
		f := load(t, good, []byte(`{"os":"first","os":"last"}`))
		if got, err := OS(f); string(got) != "last\n" || err != nil {
			t.Errorf("OS = %q, %v; the last one counts, as in jq", got, err)
		}
	})
	t.Run("sum of sizes", func(t *testing.T) {
		layer := `{"digest":"` + sha + `","size":9223372036854775807}`
		f := load(t, []byte(`{"config":`+desc+`,"layers":[`+layer+`]}`), []byte(`{}`))
		if got, err := SizeText(f); !errors.Is(err, ErrDamaged) {
			t.Errorf("SizeText = %q, %v", got, err)
		}
	})
}

// TestHistoryIsBounded: padding must not multiply a long command by the number of entries.
func TestHistoryIsBounded(t *testing.T) {
	long := strings.Repeat("x", 10<<10)
	history := `[{"created_by":"` + long + `"}` + strings.Repeat(`,{}`, maxEntries-1) + `]`
	manifest, _ := readCase(t, "testdata/facts/no-history")
	f := load(t, manifest, []byte(`{"history":`+history+`}`))
	got, err := HistoryText(f)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) > 8<<20 {
		t.Errorf("%d bytes of table for a command of 10 KiB and %d entries", len(got), maxEntries)
	}
	if !bytes.Contains(got, []byte(long)) {
		t.Error("the command is cut off")
	}
	f = load(t, manifest, []byte(`{"history":[{}`+strings.Repeat(`,{}`, maxEntries)+`]}`))
	if _, err := HistoryText(f); !errors.Is(err, ErrDamaged) {
		t.Errorf("more than %d entries: %v", maxEntries, err)
	}
}

func TestCreated(t *testing.T) {
	manifest, _ := readCase(t, "testdata/facts/no-history")
	for _, tt := range []struct {
		json, text string
		time       time.Time
		ok         bool
	}{
		{`"2024-02-29T12:00:00.500+01:00"`, "2024-02-29T12:00:00.500+01:00\n", time.Date(2024, 2, 29, 11, 0, 0, 5e8, time.UTC), true},
		{`"0001-01-01T00:00:00Z"`, "0001-01-01T00:00:00Z\n", time.Time{}, true},
		{`"2024-02-30T12:00:00Z"`, "", time.Time{}, false},
		{`"2024-02-29"`, "", time.Time{}, false},
		{`17`, "", time.Time{}, false},
		{`null`, "", time.Time{}, false},
	} {
		f := load(t, manifest, []byte(`{"created":`+tt.json+`}`))
		got, ok := f.Created()
		if ok != tt.ok || ok && !got.Equal(tt.time) {
			t.Errorf("%s: Created = %v, %v", tt.json, got, ok)
		}
		if text, _ := CreatedText(f); string(text) != tt.text {
			t.Errorf("%s: CreatedText = %q, want %q", tt.json, text, tt.text)
		}
	}
}
