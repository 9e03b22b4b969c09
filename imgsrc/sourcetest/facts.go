package sourcetest

import (
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// sameFacts compares what an image says of itself with its documents.
func (s *suite) sameFacts(f *imgsrc.Facts, want *Image) {
	s.Helper()
	if want.Lists != nil {
		if f.Kind != imgsrc.KindIndex || len(f.Children) != len(want.Lists) {
			s.Errorf("%s is an %s of %d, want an index of %d", want.ID, f.Kind, len(f.Children), len(want.Lists))
		}
		s.sameAnnotations(f, want)
		return
	}
	if f.Kind != imgsrc.KindImage || len(f.Layers) != len(want.Layers) {
		s.Errorf("%s is an %s of %d layers, want an image of %d", want.ID, f.Kind, len(f.Layers), len(want.Layers))
		return
	}
	for n, l := range want.Layers {
		got := f.Layers[n]
		if got.DiffID != l.DiffID {
			s.Errorf("image %s: the diff id of layer %d is %s, want %s", want.ID, n, got.DiffID, l.DiffID)
		}
		if !s.want.OwnManifests && (got.Digest != l.Digest || got.Size != l.Size || got.MediaType != l.MediaType || !maps.Equal(got.Annotations, l.Annotations)) {
			s.Errorf("image %s: layer %d is %+v, want %+v", want.ID, n, got, l.Descriptor)
		}
	}
	s.sameAnnotations(f, want)
	s.sameValues(f, want)
	s.sameHistory(f, want)
}

// sameAnnotations compares the manifest's annotations. A manifest that the source made has none.
func (s *suite) sameAnnotations(f *imgsrc.Facts, want *Image) {
	s.Helper()
	annotations := want.form.Annotations
	if s.want.OwnManifests {
		annotations = nil
	}
	got, err := imgsrc.Annotations(f)
	if annotations == nil && !errors.Is(err, imgsrc.ErrAbsent) || annotations != nil && (err != nil || !maps.Equal(got, annotations)) {
		s.Errorf("image %s: annotations %q, %v, want %q", want.ID, got, err, annotations)
	}
}

// values are what the config says in one value each, by its path there.
var values = map[string]func(*imgsrc.Facts) ([]byte, error){
	"author": imgsrc.Author, "architecture": imgsrc.Architecture, "variant": imgsrc.Variant, "os": imgsrc.OS, "created": imgsrc.CreatedText,
	"config/User": imgsrc.User, "config/ExposedPorts": imgsrc.ExposedPorts, "config/Env": imgsrc.Env, "config/Entrypoint": imgsrc.Entrypoint,
	"config/Cmd": imgsrc.Cmd, "config/Volumes": imgsrc.Volumes, "config/WorkingDir": imgsrc.WorkDir, "config/StopSignal": imgsrc.StopSignal,
}

func (s *suite) sameValues(f *imgsrc.Facts, want *Image) {
	s.Helper()
	for at, value := range values {
		got, err := value(f)
		text, ok := s.valueIn(want.Config, at)
		if ok && (err != nil || string(got) != text) || !ok && !errors.Is(err, imgsrc.ErrAbsent) {
			s.Errorf("image %s: %s is %q, %v, want %q, %v", want.ID, at, got, err, text, ok)
		}
	}
	var config struct {
		Config struct{ Labels map[string]string }
	}
	s.decode(want.Config, &config)
	labels, err := imgsrc.Labels(f)
	if none := config.Config.Labels == nil; none && !errors.Is(err, imgsrc.ErrAbsent) || !none && (err != nil || !maps.Equal(labels, config.Config.Labels)) {
		s.Errorf("image %s: labels %q, %v, want %q", want.ID, labels, err, config.Config.Labels)
	}
}

func (s *suite) decode(b []byte, v any) {
	s.Helper()
	if err := json.Unmarshal(b, v); err != nil {
		s.Fatal(err)
	}
}

// valueIn is a value of a JSON document as a text: one line, or as many as it has items or keys.
func (s *suite) valueIn(doc []byte, at string) (text string, ok bool) {
	s.Helper()
	var v any
	s.decode(doc, &v)
	for _, key := range strings.Split(at, "/") {
		object, _ := v.(map[string]any)
		v = object[key]
	}
	var items []string
	switch v := v.(type) {
	case nil:
		return "", false
	case string:
		if v == "" {
			return "", true
		}
		return v + "\n", true
	case []any:
		for _, item := range v {
			items = append(items, item.(string))
		}
	case map[string]any:
		items = slices.Sorted(maps.Keys(v))
	}
	for _, item := range items {
		text += item + "\n"
	}
	return text, true
}

// A step is one of an image's history, as history.json has it.
type step struct {
	Created, CreatedBy, Author, Comment string
	EmptyLayer                          bool
	Digest, DiffID                      digest.Digest
	Size                                int64
}

func (s *suite) sameHistory(f *imgsrc.Facts, want *Image) {
	s.Helper()
	var config struct {
		History []struct {
			Created, Author, Comment string
			CreatedBy                string `json:"created_by"`
			EmptyLayer               bool   `json:"empty_layer"`
		}
	}
	s.decode(want.Config, &config)
	var steps []step
	n := 0
	for _, h := range config.History {
		st := step{Created: h.Created, CreatedBy: h.CreatedBy, Author: h.Author, Comment: h.Comment, EmptyLayer: h.EmptyLayer}
		if !h.EmptyLayer {
			l := want.Layers[n]
			st.Digest, st.DiffID, st.Size = l.Digest, l.DiffID, l.Size
			if s.want.OwnManifests { // a layer's digest and size are the manifest's
				st.Digest, st.Size = f.Layers[n].Digest, max(f.Layers[n].Size, 0) // none of a layer that is missing
			}
			n++
		}
		steps = append(steps, st)
	}
	b, err := imgsrc.HistoryJSON(f)
	var got []step
	if err == nil {
		err = json.Unmarshal(b, &got)
	}
	if err != nil || !reflect.DeepEqual(got, steps) {
		s.Errorf("image %s: %v, the history is\n%+v\nwant\n%+v", want.ID, err, got, steps)
	}
}
