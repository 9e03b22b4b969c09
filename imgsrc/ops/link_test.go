package ops

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
)

// Where a link stands says whose name it is, and what is to go says where.
func TestLinks(t *testing.T) {
	img := newImage(t, imgspecv1.MediaTypeImageManifest, true, "a", tarOf("a", nil))
	for name, test := range map[string]struct {
		remote bool
		words  []string
		want   error
		names  string // in the two stores and the registry
	}{
		"a name":                          {false, []string{"+localhost/new:1"}, nil, "[localhost/one:1 localhost/new:1] [localhost/two:1] [reg.io/web:1]"},
		"renamed":                         {false, []string{"+localhost/new:1", "-localhost/one:1"}, nil, "[localhost/new:1] [localhost/two:1] [reg.io/web:1]"},
		"renamed in the second":           {false, []string{"+localhost/new:1", "-localhost/two:1"}, nil, "[localhost/one:1] [localhost/new:1] [reg.io/web:1]"},
		"removed from the second":         {false, []string{"-localhost/two:1"}, nil, "[localhost/one:1] [] [reg.io/web:1]"},
		"removed from both":               {false, []string{"-localhost/both:1"}, nil, "[localhost/one:1] [localhost/two:1] [reg.io/web:1]"},
		"to the name that it has":         {false, []string{"+localhost/one:1"}, nil, "[localhost/one:1] [localhost/two:1] [reg.io/web:1]"},
		"of nobody":                       {false, []string{"-localhost/none:1"}, imgsrc.ErrNotFound, "[localhost/one:1] [localhost/two:1] [reg.io/web:1]"},
		"the registry's is not a store's": {false, []string{"-reg.io/web:1"}, imgsrc.ErrNotFound, "[localhost/one:1] [localhost/two:1] [reg.io/web:1]"},
		"a registry's, in a store":        {false, []string{"+reg.io/web:2"}, nil, "[localhost/one:1 reg.io/web:2] [localhost/two:1] [reg.io/web:1]"},
		"in the registry":                 {true, []string{"+reg.io/web:2"}, nil, "[localhost/one:1] [localhost/two:1] [reg.io/web:1] [reg.io/web:2]"},
		"another registry's":              {true, []string{"+localhost/web:2"}, imgsrc.ErrInvalid, "[localhost/one:1] [localhost/two:1] [reg.io/web:1]"},
		"no reference":                    {false, []string{"+NO"}, imgsrc.ErrInvalid, "[localhost/one:1] [localhost/two:1] [reg.io/web:1]"},
	} {
		t.Run(name, func(t *testing.T) {
			one := &tagging{fakeSource: &fakeSource{name: "containers-storage:", images: []imgsrc.Listed{{Image: img, Names: []string{"localhost/one:1"}}}}}
			two := &tagging{fakeSource: &fakeSource{name: "oci:/srv", images: []imgsrc.Listed{{Image: img, Names: []string{"localhost/two:1"}}}}}
			reg := &hostTagging{tagging{fakeSource: &fakeSource{name: "docker://reg.io", images: []imgsrc.Listed{{Image: remoteImage{img}, RemoteNames: []string{"reg.io/web:1"}}}}}, "reg.io"}
			if strings.Contains(name, "both") {
				one.images[0].Names = append(one.images[0].Names, "localhost/both:1")
				two.images[0].Names = append(two.images[0].Names, "localhost/both:1")
			}
			o, _ := newOpsOn(t, Options{}, one, two, reg)
			r := tagRequest(img, test.words...)
			r.Control, r.Remote = "link", test.remote
			if err := o.Do(t.Context(), r); !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
			got := fmt.Sprint(one.images[0].Names, two.images[0].Names, reg.images[0].RemoteNames)
			if len(reg.images[0].Names) > 0 { // where the fake puts what it is given
				got += fmt.Sprint(" ", reg.images[0].Names)
			}
			if got != test.names {
				t.Errorf("names %s, want %s", got, test.names)
			}
			if text, _ := o.LastError(img.desc.ID); (text != "") != (test.want != nil) {
				t.Errorf("last error %q", text)
			}
		})
	}
}

func TestCheckName(t *testing.T) {
	img := smallImage(t)
	archived := &fakeImage{desc: imgsrc.Desc{ID: strings.Repeat("a", 64)}}
	store := &tagging{fakeSource: &fakeSource{name: "containers-storage:", images: []imgsrc.Listed{{Image: img}}}}
	archive := &fakeSource{name: "docker-archive:x.tar", images: []imgsrc.Listed{{Image: archived}}}
	o, _ := newOpsOn(t, Options{}, archive, store)
	if _, err := o.opt.Catalog.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		id, name string
		remote   bool
		want     string
		err      error
	}{
		{id: img.desc.ID, name: "localhost/x", want: "localhost/x:latest"},
		{id: "", name: "localhost/x:1", want: "localhost/x:1"},
		{id: img.desc.ID, name: "NO", err: imgsrc.ErrInvalid},
		{id: img.desc.ID, name: "reg.io/x:1", remote: true, err: imgsrc.ErrReadOnly},
		{id: archived.desc.ID, name: "localhost/x:1", err: imgsrc.ErrUnsupported},
		{id: strings.Repeat("b", 64), name: "localhost/x:1", err: imgsrc.ErrNotFound},
	} {
		got, err := o.CheckName(test.id, test.name, test.remote)
		if got != test.want || !errors.Is(err, test.err) {
			t.Errorf("%.8s %q: %q, %v; want %q, %v", test.id, test.name, got, err, test.want, test.err)
		}
	}
}

// removing is a tagging source that images can be removed from.
type removing struct {
	tagging
	keeps bool // intermediates
	fails error
}

func (s *removing) Intermediates() bool { return s.keeps }

func (s *removing) Remove(_ context.Context, manifests []imgsrc.Desc, names []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fails != nil {
		return s.fails
	}
	s.stamp++
	s.images = slices.DeleteFunc(s.images, func(l imgsrc.Listed) bool {
		return slices.ContainsFunc(manifests, func(d imgsrc.Desc) bool { return d.Digest == l.Desc().Digest })
	})
	return nil
}

// generation makes an image over another one's layers, by one step; layers are the keys by which a source tells them.
func generation(t *testing.T, n int) imgsrc.Listed {
	t.Helper()
	var diffs [][]byte
	l := imgsrc.Listed{}
	for i := range n {
		diffs = append(diffs, tarOf(fmt.Sprint(i), nil))
		l.Layers = append(l.Layers, fmt.Sprint(i))
	}
	l.Image = newImage(t, imgspecv1.MediaTypeImageManifest, true, "", diffs...)
	return l
}

func TestRemove(t *testing.T) {
	one, two, three := generation(t, 1), generation(t, 2), generation(t, 3)
	with := func(l imgsrc.Listed, change func(*imgsrc.Listed)) imgsrc.Listed { change(&l); return l }
	named := func(l *imgsrc.Listed) { l.Names = []string{"localhost/x:1"} }
	used := func(l *imgsrc.Listed) { l.Containers = []string{"c0ffee"} }
	for name, test := range map[string]struct {
		images []imgsrc.Listed
		remove imgsrc.Listed
		layout bool // no store
		also   []imgsrc.Source
		fails  error
		want   error
		left   int
	}{
		"alone":                           {images: []imgsrc.Listed{one}, remove: one},
		"with its parents":                {images: []imgsrc.Listed{one, two, three}, remove: three},
		"up to one with a name":           {images: []imgsrc.Listed{one, with(two, named), three}, remove: three, left: 2},
		"up to one that a container uses": {images: []imgsrc.Listed{with(one, used), two, three}, remove: three, left: 1},
		"a parent, not its child":         {images: []imgsrc.Listed{one, two, three}, remove: two, left: 1},
		"of a layout":                     {images: []imgsrc.Listed{one, two, three}, remove: three, layout: true, left: 2},
		"used":                            {images: []imgsrc.Listed{with(one, used)}, remove: one, want: imgsrc.ErrInUse, left: 1},
		"gone":                            {images: []imgsrc.Listed{one}, remove: two, want: imgsrc.ErrNotFound, left: 1},
		"read-only":                       {images: []imgsrc.Listed{one}, remove: one, fails: fmt.Errorf("x: %w", imgsrc.ErrReadOnly), want: imgsrc.ErrReadOnly, left: 1},
		"from the source that can":        {images: []imgsrc.Listed{one}, remove: one, also: []imgsrc.Source{&fakeSource{name: "oci-archive:x", images: []imgsrc.Listed{one}}}},
		"with its parents, which others have children of": {images: []imgsrc.Listed{one, two, three}, remove: three,
			also: []imgsrc.Source{&fakeSource{name: "oci-archive:x", images: []imgsrc.Listed{three, generation(t, 4)}}}},
		"up to one that an archive has": {images: []imgsrc.Listed{one, two, three}, remove: three, left: 1,
			also: []imgsrc.Source{&fakeSource{name: "oci-archive:x", images: []imgsrc.Listed{one}}}},
		"from none that can": {remove: one, also: []imgsrc.Source{&fakeSource{name: "oci-archive:x", images: []imgsrc.Listed{one}}}, want: imgsrc.ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			src := &removing{tagging: tagging{fakeSource: &fakeSource{name: "containers-storage:", images: slices.Clone(test.images)}}, keeps: !test.layout, fails: test.fails}
			o, _ := newOpsOn(t, Options{}, append([]imgsrc.Source{src}, test.also...)...)
			id := test.remove.Desc().ID
			err := o.Do(t.Context(), Request{Control: "remove", Image: id})
			if !errors.Is(err, test.want) || len(src.images) != test.left {
				t.Errorf("%v, want %v; %d are left, want %d", err, test.want, len(src.images), test.left)
			}
			events, _ := o.Events()
			if n := strings.Count(string(events), `"type":"remove"`); test.want == nil && n != len(test.images)-test.left {
				t.Errorf("%d events:\n%s", n, events)
			}
			if test.want != nil && lastEvent(t, events).Type != "remove-error" {
				t.Errorf("events:\n%s", events)
			}
		})
	}
	o, _ := newOps(t, Options{ReadOnly: true})
	if err := o.Do(t.Context(), Request{Control: "remove", Image: one.Desc().ID}); !errors.Is(err, imgsrc.ErrReadOnly) {
		t.Errorf("read-only mount: %v", err)
	}
}
