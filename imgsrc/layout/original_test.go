package layout

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/export"
)

const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// asDocker is the Docker form of an OCI manifest or index, over the same config and layers.
func (l *testLayout) asDocker(d v1.Descriptor) v1.Descriptor {
	l.Helper()
	b, err := os.ReadFile(l.path(d.Digest))
	if err != nil {
		l.Fatal(err)
	}
	text := strings.NewReplacer(
		v1.MediaTypeImageManifest, dockerManifest, v1.MediaTypeImageIndex, dockerList,
		v1.MediaTypeImageConfig, "application/vnd.docker.container.image.v1+json",
		gzipLayer, "application/vnd.docker.image.rootfs.diff.tar.gzip",
	).Replace(string(b))
	return l.blob(strings.NewReplacer(v1.MediaTypeImageManifest, dockerManifest, v1.MediaTypeImageIndex, dockerList).Replace(d.MediaType), []byte(text))
}

// made lists d as what was made from original.
func (l *testLayout) made(d, original v1.Descriptor, name string) {
	l.Helper()
	annotations := []string{export.AnnotationOriginal, original.Digest.String()}
	if name != "" {
		annotations = append(annotations, v1.AnnotationRefName, name)
	}
	l.add(d, annotations...)
}

func TestOriginal(t *testing.T) {
	for name, make := range map[string]func(l *testLayout) (want []string){
		"the same layers": func(l *testLayout) []string {
			oci := l.image("a")
			was := l.asDocker(oci)
			l.made(oci, was, "x")
			l.made(oci, was, "y")
			return []string{show(was, "", "x", "y")}
		},
		"said once": func(l *testLayout) []string {
			oci := l.image("a")
			was := l.asDocker(oci)
			l.name(oci, "x")
			l.made(oci, was, "y")
			return []string{show(was, "", "x", "y")}
		},
		"other layers": func(l *testLayout) []string {
			plain := l.blob(v1.MediaTypeImageLayer, tarOf("a"))
			oci := l.manifest([]v1.Descriptor{plain}, []digest.Digest{plain.Digest})
			l.made(oci, l.asDocker(l.image("a")), "x")
			return []string{show(oci, "", "x")}
		},
		"another image": func(l *testLayout) []string {
			oci := l.image("a")
			l.made(oci, l.asDocker(l.image("b")), "x")
			return []string{show(oci, "", "x")}
		},
		"of another kind": func(l *testLayout) []string {
			oci := l.image("a")
			l.made(oci, l.nested(oci), "x")
			return []string{show(oci, "", "x")}
		},
		"missing": func(l *testLayout) []string {
			oci := l.image("a")
			was := l.asDocker(oci)
			if err := os.Remove(l.path(was.Digest)); err != nil {
				l.Fatal(err)
			}
			l.made(oci, was, "x")
			return []string{show(oci, "", "x")}
		},
		"damaged": func(l *testLayout) []string {
			oci := l.image("a")
			was := l.asDocker(oci)
			l.blobAs(was.MediaType, []byte("{}"), was.Digest)
			l.made(oci, was, "x")
			return []string{show(oci, "", "x")}
		},
		"listed itself": func(l *testLayout) []string {
			oci := l.image("a")
			was := l.asDocker(oci)
			l.made(oci, was, "x")
			l.name(was, "y")
			return []string{show(oci, "", "x"), show(was, "", "y")}
		},
		"beside one that was made from none": func(l *testLayout) []string {
			oci := l.image("a")
			was := l.asDocker(oci)
			l.made(oci, oci, "x")
			l.made(oci, was, "y")
			l.made(oci, oci, "z")
			return []string{show(oci, "", "x", "z"), show(was, "", "y")}
		},
		"of two, one of which is missing": func(l *testLayout) []string {
			oci := l.image("a")
			was := l.asDocker(oci)
			l.made(oci, v1.Descriptor{Digest: digest.FromString("missing")}, "x")
			l.made(oci, was, "y")
			l.made(oci, oci, "z")
			return []string{show(oci, "", "x", "z"), show(was, "", "y")}
		},
		"no digest": func(l *testLayout) []string {
			oci := l.image("a")
			l.add(oci, export.AnnotationOriginal, "../../etc/passwd")
			return []string{show(oci, "")}
		},
		"itself": func(l *testLayout) []string {
			oci := l.image("a")
			l.made(oci, oci, "x")
			return []string{show(oci, "", "x")}
		},
		"an index": func(l *testLayout) []string {
			a, b := l.image("a"), l.image("b")
			wasA, wasB := l.asDocker(a), l.asDocker(b)
			list := l.asDocker(l.nested(wasA, wasB))
			l.made(a, wasA, "a")
			l.made(l.nested(a, b), list, "multi")
			l.made(b, wasB, "")
			return []string{show(wasA, "", "a"), show(list, "", "multi"), show(wasB, "")}
		},
		"an index of which one is another": func(l *testLayout) []string {
			a, b := l.image("a"), l.image("b")
			wasA, wasB := l.asDocker(a), l.asDocker(b)
			list, made := l.asDocker(l.nested(wasA, wasB)), l.nested(a, b)
			l.made(made, list, "multi")
			l.made(a, wasA, "")
			return []string{show(made, "", "multi"), show(wasA, ""), show(b, "")}
		},
		"an index in an index": func(l *testLayout) []string {
			a := l.image("a")
			was := l.asDocker(a)
			inner, outer := l.nested(a), l.nested(l.nested(a))
			wasInner := l.asDocker(l.nested(was))
			wasOuter := l.asDocker(l.nested(wasInner))
			l.made(outer, wasOuter, "outer")
			l.made(inner, wasInner, "inner")
			l.made(a, was, "a")
			return []string{show(wasOuter, "", "outer"), show(wasInner, "", "inner"), show(was, "", "a")}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			want := strings.Join(make(l), "\n")
			s := l.open()
			for range 2 { // the second time from what is known
				if got := shown(list(t, s)); got != want {
					t.Errorf("got\n%s\nwant\n%s", got, want)
				}
			}
		})
	}
}

// What is listed as what it was is read and tagged as that, and stays so.
func TestOriginalIsTagged(t *testing.T) {
	l := newLayout(t)
	oci := l.image("a")
	was := l.asDocker(oci)
	l.made(oci, was, "x")
	s := l.open()
	img := only(t, s)
	b, err := img.Manifest(t.Context())
	if err != nil || img.Desc().MediaType != dockerManifest || !strings.Contains(string(b), dockerManifest) {
		t.Errorf("%+v %s, %v", img.Desc(), b, err)
	}
	if _, err := img.(imgsrc.Converted).Original(t.Context()); !errors.Is(err, imgsrc.ErrAbsent) {
		t.Errorf("%v, want ErrAbsent: the original is what is listed", err)
	}
	if err := s.Tag(t.Context(), img.Desc(), []string{"y"}, []string{"x"}); err != nil {
		t.Fatal(err)
	}
	if got, want := shown(list(t, s)), show(was, "", "y"); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// One whose layers are others is itself, and knows what it was.
func TestConverted(t *testing.T) {
	l := newLayout(t)
	plain := l.blob(v1.MediaTypeImageLayer, tarOf("a"))
	oci := l.manifest([]v1.Descriptor{plain}, []digest.Digest{plain.Digest})
	was := l.asDocker(l.image("a"))
	l.made(oci, was, "x")
	img := only(t, l.open())
	b, err := img.(imgsrc.Converted).Original(t.Context())
	if err != nil || was.Digest.Algorithm().FromBytes(b) != was.Digest {
		t.Errorf("%s, %v", b, err)
	}
	facts, err := imgsrc.Load(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	o, err := export.Convert(t.Context(), img, facts, nil)
	if err != nil || o.Desc.Digest != oci.Digest || o.OriginalDigest() != was.Digest {
		t.Errorf("%+v, %v; want it unchanged, and the original with it", o, err)
	}
}

// What was made of two images whose layers are others is there twice; so is it known of an index what it was if it is of all its
// images that are there.
func TestConvertedIndex(t *testing.T) {
	for name, test := range map[string]struct {
		lists func(gzip, docker, other v1.Descriptor) []v1.Descriptor // of the original
		want  bool
	}{
		"of one":                   {func(gzip, _, _ v1.Descriptor) []v1.Descriptor { return []v1.Descriptor{gzip} }, true},
		"of both":                  {func(gzip, docker, _ v1.Descriptor) []v1.Descriptor { return []v1.Descriptor{docker, gzip} }, true},
		"and of what is not there": {func(gzip, _, other v1.Descriptor) []v1.Descriptor { return []v1.Descriptor{other, gzip} }, true},
		"of another image":         {func(_, _, other v1.Descriptor) []v1.Descriptor { return []v1.Descriptor{other} }, false},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			plain := l.blob(v1.MediaTypeImageLayer, tarOf("a"))
			made := l.manifest([]v1.Descriptor{plain}, []digest.Digest{plain.Digest})
			gzip := l.image("a")
			docker := l.asDocker(gzip)
			index := l.nested(made)
			was := l.asDocker(l.nested(test.lists(gzip, docker, l.image("b"))...))
			l.made(made, gzip, "")
			l.made(made, docker, "docker")
			l.made(index, was, "multi")
			s := l.open()
			for range 2 { // the second time from what is known
				images := list(t, s).Images
				if len(images) != 3 || images[0].Desc().Original != gzip.Digest || images[1].Desc().Original != docker.Digest || images[1].Names[0] != "docker" {
					t.Fatalf("%s", shown(list(t, s)))
				}
				d := images[2].Desc()
				b, err := images[2].Image.(imgsrc.Converted).Original(t.Context())
				if test.want && (err != nil || d.Original != was.Digest || digest.FromBytes(b) != was.Digest) {
					t.Errorf("%s, %v, %s; want %s", d.Original, err, b, was.Digest)
				}
				if !test.want && (!errors.Is(err, imgsrc.ErrAbsent) || d.Original != "") {
					t.Errorf("%s, %v; want none", d.Original, err)
				}
			}
			// Each of the two has names of its own.
			images := list(t, s).Images
			if err := s.Tag(t.Context(), images[0].Desc(), []string{"docker", "gzip"}, nil); err != nil {
				t.Fatal(err)
			}
			images = list(t, s).Images
			if len(images) != 3 || strings.Join(images[0].Names, " ") != "docker gzip" || len(images[1].Names) > 0 || images[1].Desc().Original != docker.Digest {
				t.Errorf("%s", shown(list(t, s)))
			}
		})
	}
}

// A backup that is being completed shows what has come, although index.json was there before.
func TestOriginalArrives(t *testing.T) {
	l := newLayout(t)
	oci := l.image("a")
	was := l.asDocker(oci)
	text, err := os.ReadFile(l.path(was.Digest))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(l.path(was.Digest)); err != nil {
		t.Fatal(err)
	}
	l.made(oci, was, "x")
	l.age()
	s := l.open()
	if got, want := shown(list(t, s)), show(oci, "", "x"); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	before := s.Stamp()
	l.blob(was.MediaType, text)
	if s.Stamp() == before {
		t.Error("the stamp has not moved")
	}
	if got, want := shown(list(t, s)), show(was, "", "x"); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
