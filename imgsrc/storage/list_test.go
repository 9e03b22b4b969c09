package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// A madeStore is written by the test itself, as the library would write it.
type madeStore struct {
	t       testing.TB
	dir     string
	records []any
	source  *Source
}

func newMade(t testing.TB) *madeStore {
	t.Helper()
	m := &madeStore{t: t, dir: t.TempDir()}
	m.save()
	s, err := open(Options{GraphRoot: m.dir, RunRoot: filepath.Join(m.dir, "run"), Driver: "overlay"}, confNone)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	m.source = s
	return m
}

func (m *madeStore) images() string { return filepath.Join(m.dir, "overlay-images") }

// save replaces images.json, as the library does.
func (m *madeStore) save() {
	m.t.Helper()
	data, err := json.Marshal(m.records)
	if err != nil {
		m.t.Fatal(err)
	}
	next := write(m.t, data, m.images(), ".next")
	if err := os.Rename(next, filepath.Join(m.images(), "images.json")); err != nil {
		m.t.Fatal(err)
	}
}

// add adds an image with a config of its own, and returns its id and its manifest's digest.
func (m *madeStore) add(names ...string) (id string, d digest.Digest) {
	m.t.Helper()
	config := fmt.Appendf(nil, `{"rootfs":{"type":"layers"},"n":%d}`, len(m.records))
	configDigest := digest.FromBytes(config)
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"digest":%q,"size":%d},"layers":[]}`,
		configDigest, len(config))
	d = digest.FromBytes(manifest)
	id = configDigest.Encoded()
	m.data(id, "manifest", manifest)
	m.data(id, "manifest-"+d.String(), manifest)
	m.data(id, configDigest.String(), config)
	m.records = append(m.records, map[string]any{
		"id": id, "digest": d, "names": names,
		"big-data-names":   []string{configDigest.String(), "manifest-" + d.String(), "manifest"},
		"big-data-digests": map[string]digest.Digest{"manifest": d, "manifest-" + d.String(): d, configDigest.String(): configDigest},
	})
	return id, d
}

func (m *madeStore) path(id, key string) string { return m.source.dataPath(0, id, key) }

func (m *madeStore) data(id, key string, data []byte) { write(m.t, data, m.path(id, key)) }

func TestDamagedEntriesLeaveTheRest(t *testing.T) {
	m := newMade(t)
	var ids []string
	for i := range 9 {
		id, _ := m.add(fmt.Sprintf("localhost/n:%d", i))
		ids = append(ids, id)
	}
	remove := func(file string) {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	config := func(i int) string { return m.path(ids[i], "sha256:"+ids[i]) }
	remove(m.path(ids[1], "manifest"))
	m.data(ids[2], "manifest", []byte("not JSON"))
	m.data(ids[3], "manifest", append([]byte(`{"mediaType":"`), make([]byte, imgsrc.MaxManifest)...))
	m.data(ids[4], "manifest", []byte(`{"schemaVersion":2,"mediaType":"x"}`)) // another digest
	remove(config(5))
	if err := os.Truncate(config(6), imgsrc.MaxManifest+1); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.RemoveAll(filepath.Join(m.images(), ids[7]))); err != nil {
		t.Fatal(err)
	}
	m.records = append(m.records, 17, map[string]any{"id": "../../etc"}, map[string]any{"id": strings.Repeat("A", 64)}, nil,
		map[string]any{"id": strings.Repeat("a", 64), "names": "localhost/string"})
	m.save()
	write(t, []byte("{"), m.dir, "overlay-containers", "containers.json")
	write(t, fmt.Appendf(nil, `[{"id":"c1","image":%q},{"id":"c2","image":""}]`, ids[0]), m.dir, "run", "overlay-containers", "volatile-containers.json")

	list, err := m.source.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Problems) != 6 {
		t.Errorf("%d problems: %v", len(list.Problems), list.Problems)
	}
	if len(list.Images) != 9 {
		t.Fatalf("%d images", len(list.Images))
	}
	for i, img := range list.Images {
		desc := img.Desc()
		whole := i == 0 || i == 8
		if desc.ID != ids[i] || desc.Digest == "" || (desc.Damaged == nil) != whole {
			t.Errorf("image %d: %+v", i, desc)
		}
		_, err1 := img.Manifest(t.Context())
		_, err2 := img.Config(t.Context())
		if whole && (err1 != nil || err2 != nil) {
			t.Errorf("image %d: %v, %v", i, err1, err2)
		}
		if !whole && !errors.Is(err1, imgsrc.ErrDamaged) && !errors.Is(err2, imgsrc.ErrDamaged) {
			t.Errorf("image %d: %v, %v", i, err1, err2)
		}
	}
	m.records = m.records[:7] // a removal takes the record first
	m.save()
	if _, err := list.Images[7].Manifest(t.Context()); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("an image that was removed: %v", err)
	}
	if !slices.Equal(list.Images[0].Containers, []string{"c1"}) {
		t.Errorf("containers %v", list.Images[0].Containers)
	}

	if err := os.WriteFile(filepath.Join(m.images(), "images.json"), []byte(`[{"id":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := m.source.List(t.Context()); !errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("half an images.json: %v", err)
	}
	if err := os.RemoveAll(m.images()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.source.List(t.Context()); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("no store: %v", err)
	}
}

func TestListSeesEveryChange(t *testing.T) {
	m := newMade(t)
	id, d := m.add("localhost/a:1")
	m.save()
	s := m.source
	first := find(t, s, "localhost/a:1")
	if again := find(t, s, "localhost/a:1"); again.Image != first.Image {
		t.Error("an image that did not change is read again")
	}
	config := m.path(id, "sha256:"+id)
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(config); err != nil {
		t.Fatal(err)
	}
	if desc := find(t, s, "localhost/a:1").Desc(); desc.Damaged == nil || desc.Digest != d {
		t.Errorf("without config: %+v", desc)
	}
	m.data(id, "sha256:"+id, text)
	m.data(id, "manifest", []byte("{}"))
	if desc := find(t, s, "localhost/a:1").Desc(); desc.Damaged == nil || desc.MediaType != "" {
		t.Errorf("with another manifest: %+v", desc)
	}
	stamp := s.Stamp()
	m.add("localhost/b:1")
	m.save()
	if s.Stamp() == stamp {
		t.Error("the stamp does not see an image")
	}
	find(t, s, "localhost/b:1")
	info, err := os.Stat(filepath.Join(m.images(), "images.json"))
	if err != nil {
		t.Fatal(err)
	}
	if list, err := s.List(t.Context()); err != nil || !list.ModTime.Equal(info.ModTime()) {
		t.Errorf("modified at %v, not %v (%v)", list.ModTime, info.ModTime(), err)
	}
	for _, dir := range []string{m.dir, filepath.Join(m.dir, "run")} {
		for _, file := range []string{"containers.json", "volatile-containers.json"} {
			stamp := s.Stamp()
			if write(t, []byte("[]"), dir, "overlay-containers", file); s.Stamp() == stamp {
				t.Errorf("the stamp does not see %s/%s", dir, file)
			}
		}
	}
	if stamp = s.Stamp(); s.Stamp() != stamp {
		t.Error("the stamp moves by itself")
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.List(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("listing for somebody who has left: %v", err)
	}
}

func TestLayersThatCannotBe(t *testing.T) {
	m := newMade(t)
	for i, tt := range []struct {
		layers string // a format of the layer's id
		want   error
	}{
		{`[{"id":"%[1]s","diff-digest":"sha256:` + strings.Repeat("a", 64) + `","parent":"%[1]s"}]`, imgsrc.ErrDamaged},
		{`[{"id":"other"}]`, imgsrc.ErrDamaged},
		{`[{"id":"%s"`, imgsrc.ErrDamaged},
		{`[{"id":"%s","toc-digest":"sha256:` + strings.Repeat("a", 64) + `","diff-size":-1}]`, imgsrc.ErrAbsent},
		{`[null,{"id":"../%[1]s"},{"id":"%[1]s","parent":"../%[1]s"}]`, imgsrc.ErrDamaged},
	} {
		m.records = nil
		m.add("localhost/a:1")
		id := fmt.Sprintf("layer%d", i)
		m.records[0].(map[string]any)["layer"] = id
		m.save()
		text := tt.layers
		if strings.Contains(text, "%") {
			text = fmt.Sprintf(text, id)
		}
		write(t, []byte(text), m.dir, "overlay-layers", "layers.json")
		if err := os.MkdirAll(filepath.Join(m.dir, "overlay", id, "diff"), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := find(t, m.source, "localhost/a:1").Diff(t.Context(), 0); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestWatch(t *testing.T) {
	m := newMade(t)
	away := filepath.Join(t.TempDir(), "away")
	calls := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.source.Watch(ctx, func() { calls <- struct{}{} }) }()
	await := func(what string) {
		t.Helper()
		select {
		case <-calls:
		case err := <-done:
			t.Fatalf("%s: the watch has ended: %v", what, err)
		case <-time.After(20 * time.Second): // below the time after which a watch looks for itself
			t.Fatalf("%s is not seen", what)
		}
		for len(calls) > 0 { // one change may be several events
			<-calls
		}
	}
	await("the beginning")
	for i := range 5 {
		m.add(fmt.Sprintf("localhost/a:%d", i))
		m.save()
		await("an image")
	}
	write(t, []byte(`[]`), m.dir, "overlay-containers", "containers.json")
	await("a directory that is made later")
	write(t, []byte(`[{}]`), m.dir, "overlay-containers", "containers.json")
	await("a change in it")
	if err := os.Rename(m.images(), away); err != nil {
		t.Fatal(err)
	}
	await("a directory that goes")
	m.save()
	await("a directory that comes")
	m.add("localhost/b:1")
	m.save()
	await("a change in the new directory")
	if err := os.RemoveAll(m.dir); err != nil {
		t.Fatal(err)
	}
	await("a store that goes")
	m.save()
	await("a store that comes")
	write(t, []byte(`[]`), m.dir, "run", "overlay-containers", "volatile-containers.json")
	await("a directory two levels down")
	m.save()
	await("a change in the new store")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func BenchmarkList(b *testing.B) {
	m := newMade(b)
	for i := range 1000 {
		m.add(fmt.Sprintf("localhost/image:%d", i), fmt.Sprintf("registry.example.com/a/b:%d", i))
	}
	m.save()
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			clear(m.source.listed)
			if list, err := m.source.List(b.Context()); err != nil || len(list.Images) != 1000 || len(list.Problems) > 0 {
				b.Fatal(err)
			}
		}
	})
	b.Run("again", func(b *testing.B) {
		for b.Loop() {
			if _, err := m.source.List(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("stamp", func(b *testing.B) {
		for b.Loop() {
			m.source.Stamp()
		}
	})
}
