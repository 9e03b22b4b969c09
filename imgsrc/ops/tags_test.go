package ops

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
)

func tagRequest(img *fakeImage, words ...string) Request {
	r := Request{Control: "tags", Image: img.desc.ID, Key: strings.Join(words, " "), UID: 7}
	for _, w := range words {
		r.Lines = append(r.Lines, []string{w})
	}
	return r
}

func TestTags(t *testing.T) {
	a := newImage(t, imgspecv1.MediaTypeImageManifest, true, "a", tarOf("a", nil))
	b := newImage(t, imgspecv1.MediaTypeImageManifest, true, "b", tarOf("a", nil))
	for _, test := range []struct {
		words []string
		want  error
		text  string
		a, b  string // the names in the end; empty: as before
		types string // of the events
	}{
		{[]string{"localhost/new"}, nil, "", "localhost/a:1 localhost/a:2 localhost/new:latest", "", "tag"},
		{[]string{"+localhost/new:3", "localhost/newer"}, nil, "", "localhost/a:1 localhost/a:2 localhost/new:3 localhost/newer:latest", "", "tag tag"},
		{[]string{"-localhost/a:1"}, nil, "", "localhost/a:2", "", "untag"},
		{[]string{"localhost/b:1"}, nil, "", "localhost/a:1 localhost/a:2 localhost/b:1", "-", "tag"},
		{[]string{"-localhost/a:1", "localhost/c"}, nil, "", "localhost/a:2 localhost/c:latest", "", "untag tag"},
		{[]string{"localhost/b:1", "-localhost/b:1"}, nil, "", "", "", ""},
		{[]string{"-localhost/a:1", "+localhost/a:1"}, nil, "", "", "", ""},
		{[]string{"localhost/a:1"}, nil, "", "", "", ""},
		{[]string{"localhost/c", "-localhost/none"}, imgsrc.ErrNotFound, `line 2: the image has no name "localhost/none:latest"`, "", "", "tag-error"},
		{[]string{"-localhost/b:1"}, imgsrc.ErrNotFound, "line 1", "", "", "tag-error"},
		{[]string{"-localhost/a:1", "-localhost/a:1"}, imgsrc.ErrNotFound, "line 2", "", "", "tag-error"},
		{[]string{"localhost/c", "localhost/d", "Foo/BAR"}, imgsrc.ErrInvalid, `line 3: "Foo/BAR" is not a reference: `, "", "", "tag-error"},
		{[]string{"localhost/c", "-"}, imgsrc.ErrInvalid, `line 2: "-" names nothing`, "", "", "tag-error"},
		{[]string{"https://me:s3cret@host/x"}, imgsrc.ErrInvalid, `"https://***@host/x"`, "", "", "tag-error"},
		{[]string{`me:s3"cret@host/x`}, imgsrc.ErrInvalid, `***@host/x`, "", "", "tag-error"},
	} {
		t.Run(strings.Join(test.words, " "), func(t *testing.T) {
			src := &tagging{fakeSource: &fakeSource{name: "containers-storage:", images: []imgsrc.Listed{
				{Image: a, Names: []string{"localhost/a:1", "localhost/a:2"}},
				{Image: b, Names: []string{"localhost/b:1"}},
			}}}
			o, _ := newOpsOn(t, Options{}, src)
			err := o.Do(t.Context(), tagRequest(a, test.words...))
			if !errors.Is(err, test.want) || err != nil && !strings.Contains(err.Error(), test.text) {
				t.Errorf("%v, want %v: %s", err, test.want, test.text)
			}
			if err != nil && !strings.HasPrefix(err.Error(), "tagging "+a.desc.ID[:12]+": ") {
				t.Errorf("%v", err)
			}
			if src.calls > 1 || err != nil && src.calls > 0 {
				t.Errorf("%d calls of Tag", src.calls)
			}
			if test.a == "" {
				test.a = "localhost/a:1 localhost/a:2"
			}
			if test.b == "" {
				test.b = "localhost/b:1"
			}
			snapshot := o.opt.Catalog.Snapshot() // which Do has refreshed after it changed something
			if err != nil {
				snapshot, _ = o.opt.Catalog.Refresh(t.Context())
			}
			names := slices.Sorted(slices.Values(snapshot.ByID(a.desc.ID).Names))
			if got := strings.Join(names, " "); got != test.a {
				t.Errorf("a has %s, want %s", got, test.a)
			}
			if got := strings.Join(snapshot.ByID(b.desc.ID).Names, " "); got != strings.TrimPrefix(test.b, "-") {
				t.Errorf("b has %s, want %s", got, test.b)
			}
			text, _ := o.Events()
			var types []string
			for line := range strings.Lines(string(text)) {
				types = append(types, lastEvent(t, []byte(line)).Type)
			}
			if got := strings.Join(types, " "); got != test.types {
				t.Errorf("events %s", text)
			}
			last, _ := o.LastError(a.desc.ID)
			if strings.Contains(string(text)+last, "s3") {
				t.Errorf("the password is in %s or %s", text, last)
			}
		})
	}
}

func TestTagsManyLines(t *testing.T) {
	img := smallImage(t)
	src := &tagging{fakeSource: &fakeSource{name: "containers-storage:", images: []imgsrc.Listed{{Image: img}}}}
	o, _ := newOpsOn(t, Options{}, src)
	var words []string
	for i := range 2000 {
		words = append(words, fmt.Sprintf("localhost/app%d", i+1))
	}
	if err := o.Do(t.Context(), tagRequest(img, words...)); err != nil {
		t.Fatal(err)
	}
	if n := len(o.opt.Catalog.Snapshot().ByID(img.desc.ID).Names); n != 2000 || src.calls != 1 {
		t.Errorf("%d names in %d steps", n, src.calls)
	}
}

func TestTagsTwoWords(t *testing.T) {
	img := smallImage(t)
	o, _ := newOps(t, Options{}, img)
	r := tagRequest(img, "a")
	r.Lines = append(r.Lines, []string{"b", "c"})
	if err := o.Do(t.Context(), r); !errors.Is(err, imgsrc.ErrInvalid) || !strings.Contains(err.Error(), "line 2: 2 words") {
		t.Error(err)
	}
}

func TestTagsWhere(t *testing.T) {
	img := smallImage(t)
	listed := func(names ...string) []imgsrc.Listed { return []imgsrc.Listed{{Image: img, Names: names}} }
	untaggable := &fakeSource{name: "docker-archive:/srv/x.tar", images: listed("localhost/x:1")}
	readOnly := &tagging{fakeSource: &fakeSource{name: "containers-storage:ro", images: listed()}, err: fail(imgsrc.ErrReadOnly, "additional store")}
	full := &tagging{fakeSource: &fakeSource{name: "containers-storage:full", images: listed()}, err: fail(imgsrc.ErrInUse, "busy")}
	for _, test := range []struct {
		name    string
		opt     Options
		sources []imgsrc.Source
		want    error
		tagged  bool
	}{
		{"none can", Options{}, []imgsrc.Source{untaggable}, imgsrc.ErrUnsupported, false},
		{"read-only source", Options{}, []imgsrc.Source{untaggable, readOnly}, imgsrc.ErrReadOnly, false},
		{"the next one can", Options{}, []imgsrc.Source{untaggable, readOnly}, nil, true},
		{"its error counts", Options{}, []imgsrc.Source{full}, imgsrc.ErrInUse, false},
		{"read-only mount", Options{ReadOnly: true}, nil, imgsrc.ErrReadOnly, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			last := &tagging{fakeSource: &fakeSource{name: "oci:/srv", images: listed()}}
			if test.tagged || test.opt.ReadOnly {
				test.sources = append(test.sources, last)
			}
			o, _ := newOpsOn(t, test.opt, test.sources...)
			if err := o.Do(t.Context(), tagRequest(img, "localhost/new")); !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
			if (last.calls > 0) != test.tagged {
				t.Errorf("%d calls", last.calls)
			}
		})
	}
	o, _ := newOps(t, Options{})
	if err := o.Do(t.Context(), tagRequest(img, "localhost/new")); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("removed image: %v", err)
	}
}

// TestErrorCleared has a failure, then a success.
func TestErrorCleared(t *testing.T) {
	img := smallImage(t)
	src := &tagging{fakeSource: &fakeSource{name: "containers-storage:", images: []imgsrc.Listed{{Image: img}}}}
	o, log := newOpsOn(t, Options{}, src)
	err := o.Do(t.Context(), tagRequest(img, "NO"))
	text, first := o.LastError(img.desc.ID)
	if err == nil || text != err.Error() || !strings.Contains(log.String(), img.desc.ID) || strings.Count(log.String(), "\n") != 1 {
		t.Errorf("%v, %q, log %s", err, text, log)
	}
	if err := o.Do(t.Context(), tagRequest(img, "localhost/yes")); err != nil {
		t.Fatal(err)
	}
	if text, second := o.LastError(img.desc.ID); text != "" || !second.After(first) {
		t.Errorf("%q, %s then %s", text, first, second)
	}
}

// TestUnreadable has lines that nobody could make out.
func TestUnreadable(t *testing.T) {
	img := smallImage(t)
	for _, control := range []string{"tags", "push"} {
		o, _ := newOps(t, Options{}, img)
		r := Request{Control: control, Image: img.desc.ID, Err: fmt.Errorf("line 2: a quote is missing: %w", imgsrc.ErrInvalid)}
		err := o.Do(t.Context(), r)
		text, _ := o.LastError(img.desc.ID)
		events, _ := o.Events()
		if !errors.Is(err, imgsrc.ErrInvalid) || text != err.Error() || !strings.Contains(text, "line 2: a quote is missing") ||
			!strings.HasSuffix(lastEvent(t, events).Type, "-error") {
			t.Errorf("%s: %v, last error %q, events %s", control, err, text, events)
		}
	}
}

func TestUnknownControl(t *testing.T) {
	img := smallImage(t)
	o, _ := newOps(t, Options{}, img)
	r := tagRequest(img, "x")
	r.Control = "frobnicate"
	if err := o.Do(t.Context(), r); !errors.Is(err, imgsrc.ErrInvalid) {
		t.Error(err)
	}
}

// Two manifests over one config are one image to whoever writes, and each has names of its own. A name that a source has is
// removed whatever it looks like.
func TestTagsOfSeveralManifests(t *testing.T) {
	first := smallImage(t)
	again := *first
	again.manifest = append(slices.Clone(first.manifest), '\n')
	again.desc.Digest, again.desc.Size = digest.FromBytes(again.manifest), int64(len(again.manifest))
	src := &tagging{fakeSource: &fakeSource{name: "oci:/srv", images: []imgsrc.Listed{
		{Image: first, Names: []string{"localhost/a:1"}},
		{Image: &again, Names: []string{"localhost/a:2", "My Image"}},
	}}}
	o, _ := newOpsOn(t, Options{}, src)
	for _, words := range [][]string{{"-My Image"}, {"localhost/new:1", "-localhost/a:2", "-localhost/a:1"}} {
		if err := o.Do(t.Context(), tagRequest(first, words...)); err != nil {
			t.Fatalf("%q: %v", words, err)
		}
	}
	if got := fmt.Sprint(src.images[0].Names, src.images[1].Names); got != "[localhost/new:1] []" {
		t.Errorf("names %s", got)
	}
}

// hostTagging is a tagging source that takes names of one registry only, as a registry does.
type hostTagging struct {
	tagging
	host string
}

func (s *hostTagging) CheckName(name string) (string, error) {
	if !strings.HasPrefix(name, s.host+"/") {
		return "", fail(imgsrc.ErrInvalid, "%s is of another registry than %s", name, s.host)
	}
	return s.tagging.CheckName(name)
}

// remoteImage is a fakeImage that is far away.
type remoteImage struct{ *fakeImage }

func (remoteImage) Local(int) bool { return false }

func (remoteImage) Lacks() (int64, bool) { return 0, false }

// Of several sources the first takes the names, unless they are none for it. What is local is not removed from a registry.
func TestTagsOfSeveralSources(t *testing.T) {
	img := newImage(t, imgspecv1.MediaTypeImageManifest, true, "a", tarOf("a", nil))
	far := remoteImage{img}
	for name, test := range map[string]struct {
		order string
		word  string
		err   error // of the store
		want  error
		into  string
	}{
		"store first":                       {"sr", "reg.io/web:2", nil, nil, "s"},
		"registry first":                    {"rs", "reg.io/web:2", nil, nil, "r"},
		"registry first, another's name":    {"rs", "localhost/web:2", nil, nil, "s"},
		"registry alone, another's name":    {"r", "localhost/web:2", nil, imgsrc.ErrInvalid, ""},
		"removed from the registry":         {"r", "-reg.io/web:1", nil, nil, "r"},
		"not removed from the registry":     {"sr", "-reg.io/web:1", nil, imgsrc.ErrNotFound, ""},
		"a read-only store is no registry":  {"sr", "reg.io/web:2", imgsrc.ErrReadOnly, imgsrc.ErrReadOnly, ""},
		"nothing that any of them can take": {"rs", "Foo/BAR", nil, imgsrc.ErrInvalid, ""},
	} {
		t.Run(name, func(t *testing.T) {
			store := &tagging{fakeSource: &fakeSource{name: "containers-storage:", images: []imgsrc.Listed{{Image: img}}}, err: test.err}
			reg := &hostTagging{tagging{fakeSource: &fakeSource{name: "docker://reg.io", images: []imgsrc.Listed{{Image: far, RemoteNames: []string{"reg.io/web:1"}}}}}, "reg.io"}
			var sources []imgsrc.Source
			for _, which := range test.order {
				sources = append(sources, map[rune]imgsrc.Source{'s': store, 'r': reg}[which])
			}
			o, _ := newOpsOn(t, Options{}, sources...)
			if err := o.Do(t.Context(), tagRequest(img, test.word)); !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
			if test.err == nil && (store.calls > 0 != (test.into == "s")) || reg.calls > 0 != (test.into == "r") {
				t.Errorf("the store was asked %d times, the registry %d times", store.calls, reg.calls)
			}
		})
	}
}
