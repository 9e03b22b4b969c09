package sourcetest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// RunSame tests that the source that open opens has just the images of want.Same, each of them whole and the same to the
// byte, and what is damaged in them damaged in the same way. It is a part of Run, and can be called alone where the other parts
// would stumble over damage.
func RunSame(t *testing.T, open func(t *testing.T) imgsrc.Source, want Expect) {
	src := open(t)
	t.Cleanup(func() {
		if err := src.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	(&suite{T: t, src: src, want: want}).same()
}

func (s *suite) same() {
	missing := map[*Image]bool{}
	for _, want := range s.want.Same {
		missing[want] = true
	}
	for _, img := range s.images() {
		d := img.Desc()
		i := slices.IndexFunc(s.want.Same, func(want *Image) bool {
			return want.ID == d.ID && (s.want.OwnManifests || want.Digest == d.Digest)
		})
		if i < 0 {
			s.Errorf("image %s with the manifest %s is none of those that were put there", d.ID, d.Digest)
			continue
		}
		want := s.want.Same[i]
		if !missing[want] {
			s.Errorf("image %s is listed twice", d.ID)
			continue
		}
		delete(missing, want)
		s.sameImage(img, want)
	}
	for want := range missing {
		s.Errorf("image %s %q with the manifest %s is not listed", want.ID, want.Names, want.Digest)
	}
}

func (s *suite) sameImage(img imgsrc.Listed, want *Image) {
	d := img.Desc()
	if d.Damaged != nil {
		s.Errorf("image %s is listed as damaged: %v", want.ID, d.Damaged)
		return
	}
	manifest, err := img.Manifest(s.Context())
	if err != nil {
		s.Errorf("image %s: %v", want.ID, err)
		return
	}
	// A source that says it has no manifests, and has them, is to say so.
	if same := bytes.Equal(manifest, want.Manifest); same == s.want.OwnManifests {
		s.Errorf("image %s: the manifest is\n%s\nand the image's own\n%s", want.ID, manifest, want.Manifest)
	}
	config, err := img.Config(s.Context())
	if want.Config == nil && !errors.Is(err, imgsrc.ErrAbsent) || want.Config != nil && (err != nil || !bytes.Equal(config, want.Config) || d.Config != want.form.Config.Digest) {
		s.Errorf("image %s: %v, the config %s is\n%s\nwant\n%s", want.ID, err, d.Config, config, want.Config)
	}
	if !s.want.OwnManifests && (d.MediaType != want.MediaType || d.Size != want.Size) {
		s.Errorf("image %s: %d bytes of %s, want %d of %s", want.ID, d.Size, d.MediaType, want.Size, want.MediaType)
	}
	var lists []digest.Digest
	for _, child := range want.Lists {
		lists = append(lists, child.Digest)
	}
	if !slices.Equal(d.Lists, lists) {
		s.Errorf("image %s lists %v, want %v", want.ID, d.Lists, lists)
	}
	f := s.facts(img)
	s.sameFacts(f, want)
	// The files come first: what they are taken from may depend on what else of a layer was read before.
	s.sameFiles(img, want)
	for n := range want.Layers {
		l := &want.Layers[n]
		lost := l.DiffErr
		if s.want.NoSparse && l.isSparse() {
			lost = imgsrc.ErrDamaged
		}
		got, err := s.whole(img.Diff(s.Context(), n))
		s.sameBytes(want, n, "tar", got, err, l.Diff, lost)
		got, err = s.whole(img.Blob(s.Context(), l.Digest))
		switch {
		case s.want.Blobs:
			s.sameBytes(want, n, "blob", got, err, l.Blob, nil)
		case l.Digest == l.DiffID:
			s.sameBytes(want, n, "blob", got, err, l.Blob, lost)
		default:
			s.sameBytes(want, n, "blob", got, err, nil, imgsrc.ErrAbsent)
		}
	}
	if _, err := img.Diff(s.Context(), len(want.Layers)); !errors.Is(err, imgsrc.ErrAbsent) {
		s.Errorf("image %s: a layer more than it has is %v", want.ID, err)
	}
}

// sameBytes compares what came of a layer with what has to, which is an error if wantErr is one.
func (s *suite) sameBytes(img *Image, n int, what string, got []byte, err error, want []byte, wantErr error) {
	s.Helper()
	switch {
	case wantErr != nil:
		if kind := kindOf(wantErr); !errors.Is(err, kind) {
			s.Errorf("image %s, the %s of layer %d: %d bytes and the error %v, want %v", img.ID, what, n, len(got), err, wantErr)
		}
	case err != nil || !bytes.Equal(got, want):
		s.Errorf("image %s, the %s of layer %d: %d bytes %s, %v, want %d bytes %s", img.ID, what, n, len(got), digest.FromBytes(got), err, len(want), digest.FromBytes(want))
	}
}

// kindOf is the condition in an error.
func kindOf(err error) error {
	for _, kind := range []error{imgsrc.ErrDamaged, imgsrc.ErrAbsent, imgsrc.ErrUnsupported, imgsrc.ErrNotFound} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	return err
}

// whole reads a content that was opened, in pieces, and closes it.
func (s *suite) whole(c imgsrc.Content, err error) ([]byte, error) {
	s.Helper()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err := c.Close(); err != nil {
			s.Errorf("closing: %v", err)
		}
	}()
	var all []byte
	buf := make([]byte, 10_007)
	for {
		n, err := c.ReadAt(s.Context(), buf, int64(len(all)))
		all = append(all, buf[:n]...)
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
	}
}

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
				st.Digest, st.Size = f.Layers[n].Digest, f.Layers[n].Size
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

// sameFiles compares the entries of each layer, and then what they are when merged.
func (s *suite) sameFiles(img imgsrc.Image, want *Image) {
	s.Helper()
	var all []imgsrc.Files
	var indexes []*layer.Index
	sound := true
	for n := range want.Layers {
		l := &want.Layers[n]
		files, err := img.Files(s.Context(), n)
		if err != nil {
			s.Errorf("image %s, the files of layer %d: %v", want.ID, n, err)
			return
		}
		defer func() {
			if err := files.Close(); err != nil {
				s.Errorf("closing: %v", err)
			}
		}()
		if l.TarErr != nil {
			sound = false
			err := files.Entries(s.Context(), func(*imgsrc.File) error { return nil })
			s.sameBytes(want, n, "list of files", nil, err, nil, l.TarErr)
			continue
		}
		byTOC := s.want.TOC && len(l.Annotations) > 0
		if form := files.Key().Form; byTOC != (form == layer.TOCForm) {
			s.Errorf("image %s, layer %d: the files are of the form %q", want.ID, n, form)
		}
		if !byTOC { // a table of contents has another order, and only files
			s.compareFiles(files, l.entries)
		}
		x, err := layer.BuildIndex(s.Context(), files)
		if err != nil {
			s.Errorf("image %s, indexing layer %d: %v", want.ID, n, err)
			return
		}
		all, indexes = append(all, files), append(indexes, x)
	}
	if !sound || len(all) == 0 {
		return
	}
	t, err := layer.Merge(s.Context(), indexes)
	if err != nil {
		s.Errorf("image %s: %v", want.ID, err)
		return
	}
	got, rootfs := s.describeTree(t, all), merge(want.Layers).describe()
	for name, line := range rootfs {
		if got[name] != line {
			s.Errorf("image %s: %q in its root file system is\n%s\nwant\n%s", want.ID, name, got[name], line)
		}
	}
	for name, line := range got {
		if _, ok := rootfs[name]; !ok {
			s.Errorf("image %s: %q is in its root file system, and should not be: %s", want.ID, name, line)
		}
	}
}

// describeTree says of each file what tree.describe does.
func (s *suite) describeTree(t *layer.Tree, all []imgsrc.Files) map[string]string {
	s.Helper()
	names := map[uint32][]string{}
	for n := range t.Len() {
		names[t.Inode(n)] = append(names[t.Inode(n)], t.Path(n))
	}
	lines := map[string]string{}
	for n := range t.Len() {
		a, err := t.Attr(n)
		if err != nil {
			s.Error(err)
			continue
		}
		k := known{mode: a.Mode, uid: a.UID, gid: a.GID, rdev: a.Rdev, sec: a.Sec, nsec: a.Nsec, implicit: a.Implicit, xattrs: map[string]string{}}
		k.link, _ = t.Readlink(n)
		for _, x := range t.Xattrs(n) {
			k.xattrs[x.Name] = x.Value
		}
		if p, ok := t.Place(n); ok {
			k.body, err = s.readFile(all[p.Layer], p.Body, p.Size, p.Extents)
			if err != nil {
				s.Errorf("reading %q: %v", t.Path(n), err)
			}
		}
		if a.Mode&unix.S_IFMT != unix.S_IFDIR {
			k.names = names[t.Inode(n)]
			slices.Sort(k.names)
			if int(a.Nlink) != len(k.names) {
				s.Errorf("%q has %d links and the names %q", t.Path(n), a.Nlink, k.names)
			}
		}
		lines[t.Path(n)] = describeFile(k)
	}
	return lines
}

// readFile reads a file, and fills its holes.
func (s *suite) readFile(files imgsrc.Files, b imgsrc.Body, size int64, extents []imgsrc.Extent) ([]byte, error) {
	stored := make([]byte, b.Size)
	if n, err := files.ReadBody(s.Context(), b, stored, 0); err != nil && err != io.EOF || int64(n) != b.Size {
		return nil, err
	}
	if extents == nil {
		return stored, nil
	}
	all := make([]byte, size)
	for _, x := range extents {
		copy(all[x.Off:x.Off+x.Len], stored)
		stored = stored[x.Len:]
	}
	return all, nil
}
