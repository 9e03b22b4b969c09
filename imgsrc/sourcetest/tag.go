package sourcetest

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// tagger returns the source if its names may be changed, and two images, which may be one. They have names, if others have:
// there are sources in which an image cannot lose its last one.
func (s *suite) tagger() (src imgsrc.Tagger, a, b imgsrc.Desc) {
	s.Helper()
	src, ok := s.src.(imgsrc.Tagger)
	if !ok {
		s.Fatal("the source is no Tagger")
	}
	all := s.sound()
	slices.SortStableFunc(all, func(x, y imgsrc.Listed) int {
		return cmp.Compare(min(1, len(y.Names)+len(y.RemoteNames)), min(1, len(x.Names)+len(x.RemoteNames)))
	})
	for _, img := range all {
		d := img.Desc()
		if a.ID == "" {
			a, b = d, d
		} else if d.ID != a.ID {
			b = d
			break
		}
	}
	if a.ID == "" {
		s.Fatal("no image to tag")
	}
	return src, a, b
}

// mustTag changes names, and wants the stamp to move.
func (s *suite) mustTag(src imgsrc.Tagger, img imgsrc.Desc, add, remove []string) {
	s.Helper()
	before := src.Stamp()
	if err := src.Tag(s.Context(), img, add, remove); err != nil {
		s.Fatal(err)
	}
	if src.Stamp() == before {
		s.Error("the stamp has not moved")
	}
}

func (s *suite) badNames() {
	src, ok := s.src.(imgsrc.Tagger)
	if !ok {
		s.Fatal("the source is no Tagger")
	}
	for _, name := range s.want.BadNames {
		if got, err := src.CheckName(name); !errors.Is(err, imgsrc.ErrInvalid) {
			s.Errorf("name %q: %q, %v, want ErrInvalid", name, got, err)
		}
	}
	if got, err := src.CheckName(s.want.NewName); s.want.NewName != "" && (err != nil || got != s.want.NewName) {
		s.Errorf("name %q: %q, %v", s.want.NewName, got, err)
	}
}

func (s *suite) tag() {
	src, a, b := s.tagger()
	before := s.names()
	name := s.want.NewName
	if before[name] != "" {
		s.Fatalf("the name %s is there already", name)
	}
	with := func(id string) map[string]string {
		m := maps.Clone(before)
		m[name] = id
		return m
	}
	check := func(what string, want map[string]string) {
		s.Helper()
		if got := s.names(); !maps.Equal(got, want) {
			s.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	s.mustTag(src, a, []string{name}, nil)
	check("added", with(a.ID))
	if err := src.Tag(s.Context(), a, []string{name}, nil); err != nil {
		s.Errorf("adding a name that is there: %v", err)
	}
	check("added again", with(a.ID))
	if b.ID != a.ID {
		s.mustTag(src, b, []string{name}, nil)
		check("taken from another image", with(b.ID))
	}

	stamp := src.Stamp()
	for what, err := range map[string]error{
		"removing an absent name":             src.Tag(s.Context(), b, nil, []string{name + "-absent"}),
		"removing an absent one beside a new": src.Tag(s.Context(), b, []string{name + "-new"}, []string{name + "-absent"}),
		"tagging an image that is gone":       src.Tag(s.Context(), gone, []string{name}, nil),
	} {
		if !errors.Is(err, imgsrc.ErrNotFound) {
			s.Errorf("%s: %v, want ErrNotFound", what, err)
		}
	}
	if b.ID != a.ID {
		if err := src.Tag(s.Context(), a, nil, []string{name}); !errors.Is(err, imgsrc.ErrNotFound) {
			s.Errorf("removing another image's name: %v, want ErrNotFound", err)
		}
	}
	check("after what failed", with(b.ID))
	if src.Stamp() != stamp {
		s.Error("the stamp has moved, although all failed")
	}
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	if err := src.Tag(ctx, b, []string{name + "-new"}, nil); !errors.Is(err, context.Canceled) {
		s.Errorf("with a cancelled context: %v", err)
	}

	s.mustTag(src, b, []string{name + "-2", name + "-3"}, []string{name})
	want := maps.Clone(before)
	want[name+"-2"], want[name+"-3"] = b.ID, b.ID
	check("several at once", want)
	s.mustTag(src, b, nil, []string{name + "-2", name + "-3"})
	check("removed", before)
}

// gone describes an image that no source has.
var gone = imgsrc.Desc{
	ID:        digest.FromString("no such config").Encoded(),
	Digest:    digest.FromString("no such manifest"),
	Config:    digest.FromString("no such config"),
	MediaType: "application/vnd.oci.image.manifest.v1+json",
	Size:      100,
}

func (s *suite) watch() {
	src, a, _ := s.tagger()
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	fired := make(chan struct{}, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- src.Watch(ctx, func() {
			select {
			case fired <- struct{}{}:
			default:
			}
		})
	}()
	name := []string{s.want.NewName}
	for range 3 {
		// When the watch has begun is not to be seen from here: changes are made until one is noticed.
		for noticed := false; !noticed; {
			s.mustTag(src, a, name, nil)
			s.mustTag(src, a, nil, name)
			select {
			case <-fired:
				noticed = true
			case err := <-ended:
				s.Fatalf("the watch has ended: %v", err)
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	cancel()
	if err := <-ended; err != nil {
		s.Errorf("the watch ended with %v, want nil", err)
	}
}

// tagAndList moves a name to and fro, while others list: it is never seen twice, nor missing.
func (s *suite) tagAndList() {
	src, a, b := s.tagger()
	name := []string{s.want.NewName}
	s.mustTag(src, a, name, nil)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for {
				l, err := src.List(s.Context())
				if err != nil {
					s.Errorf("listing beside a tagger: %v", err)
					return
				}
				holders := map[string]bool{}
				for _, img := range l.Images {
					for _, n := range slices.Concat(img.Names, img.RemoteNames) {
						if n == name[0] {
							holders[img.Desc().ID] = true
						}
					}
				}
				if len(holders) != 1 || !holders[a.ID] && !holders[b.ID] {
					s.Errorf("the name belongs to %v, want either %s or %s", holders, a.ID, b.ID)
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for i := range 20 {
		if err := src.Tag(s.Context(), []imgsrc.Desc{b, a}[i%2], name, nil); err != nil {
			s.Error(err)
		}
	}
	close(done)
	wg.Wait()
	s.mustTag(src, a, nil, name)
}
