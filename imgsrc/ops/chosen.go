package ops

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// A loadable is one image of what is loaded, or an artifact.
type loadable struct {
	imgsrc.Held
	names    []string // as the receiver stores them
	list     *imgsrc.Listing
	artifact bool // it is one, or what has layers that are no tars, or an index of nothing else

	others []imgsrc.Held // that turned out the same in oci/, by their originals

	below   []part          // of an index that comes with all of its images: those that are there
	missing []digest.Digest // and those that are not
	text    []byte          // of an index: what it was before oci/ made it anew, and is to be again; nil: what it is
}

// chosen returns the images that are to be loaded, with the names that they get. What only an index lists does not count by
// itself: it comes with the index, or the index counts as the image for the platform that is meant. Artifacts go where they
// can be kept; anywhere else they are left out if there is something else.
func (o *Ops) chosen(ctx context.Context, src imgsrc.Source, list *imgsrc.Listing, p pullLine, to Receiver) ([]loadable, error) {
	all, err := listed(ctx, src, list, p.asked)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fail(imgsrc.ErrInvalid, "there is no image in it")
	}
	leaveOut := o.leaveOut
	if p.dryRun {
		leaveOut = func(string, string, string) {}
	}
	if !isLayout(to) { // a store could make nothing of them
		if all, err = withoutArtifacts(all, to, leaveOut); err != nil {
			return nil, err
		}
	}
	named := p.name == ""
	for i := range all {
		l := &all[i]
		if p.name == "" || l.artifact && len(all) > 1 {
			l.names = storable(l.names, to, leaveOut)
			continue
		}
		if named {
			return nil, fail(imgsrc.ErrInvalid, "name=%s: there are %d images in it", p.name, images(all))
		}
		name, err := to.CheckName(p.name)
		if err != nil {
			return nil, err
		}
		l.names, named = []string{name}, true
	}
	for i := range all {
		if _, apart := to.(indexReceiver); p.all && !all[i].artifact && all[i].Desc().Lists != nil && (apart || isLayout(to)) {
			if err := o.gather(ctx, &all[i], apart); err != nil {
				return nil, fmt.Errorf("nothing was loaded: %w", err)
			}
		}
	}
	if !named {
		return nil, fail(imgsrc.ErrInvalid, "name=%s: there are %d artifacts in it, and no image", p.name, len(all))
	}
	return all, nil
}

// images returns how many are no artifacts.
func images(all []loadable) (n int) {
	for _, l := range all {
		if !l.artifact {
			n++
		}
	}
	return n
}

// means returns which of the names in a listing a person means by the one that was asked for: that one, as it is or in
// full; else those of this tag, as an entry of a layout may be known by its tag alone; else all, of what is asked for by
// an id or a number.
func means(list *imgsrc.Listing, asked string) func(name string) bool {
	full, _ := reference.ParseDockerRef(asked)
	for _, meant := range []func(name string) bool{
		func(name string) bool { return name == asked },
		func(name string) bool { return full != nil && name == full.String() },
		func(name string) bool { return strings.HasSuffix(name, ":"+asked) },
	} {
		if asked != "" && slices.ContainsFunc(list.Images, func(img imgsrc.Listed) bool { return slices.ContainsFunc(img.Names, meant) }) {
			return meant
		}
	}
	return func(string) bool { return true }
}

// listed returns what a listing has, each manifest once with all of its names that are meant by the one that was asked for,
// but for what only an index lists.
func listed(ctx context.Context, src imgsrc.Source, list *imgsrc.Listing, asked string) ([]loadable, error) {
	meant := means(list, asked)
	below := map[digest.Digest]bool{}
	for _, img := range list.Images {
		for _, d := range img.Desc().Lists {
			below[d] = true
		}
	}
	var all []loadable
	type form struct{ digest, original digest.Digest }
	at := map[form]int{}
	for _, img := range list.Images {
		d := img.Desc()
		names := slices.DeleteFunc(slices.Clone(img.Names), func(name string) bool { return !meant(name) })
		if below[d.Digest] && len(names) == 0 {
			continue
		}
		if d.Damaged != nil {
			return nil, fmt.Errorf("nothing was loaded: %w", d.Damaged)
		}
		is := form{digest: d.Digest}
		if d.Lists != nil { // which has an id of its own for each that it was
			is.original = d.Original
		}
		if i, there := at[is]; there {
			all[i].names = append(all[i].names, names...)
			if held := (imgsrc.Held{Listed: img, Source: src}); d.Original != all[i].Desc().Original {
				all[i].others = append(all[i].others, held)
			}
			continue
		}
		at[is] = len(all)
		artifact, err := isArtifactIn(ctx, img, list)
		if err != nil {
			return nil, fmt.Errorf("nothing was loaded: %w", err)
		}
		all = append(all, loadable{Held: imgsrc.Held{Listed: img, Source: src}, names: names, list: list, artifact: artifact})
	}
	return all, nil
}

// isArtifactIn says whether one of a listing's is an artifact, or an index of nothing else: that is where signatures are
// found in registries that know no referrers.
func isArtifactIn(ctx context.Context, img imgsrc.Image, list *imgsrc.Listing) (bool, error) {
	facts, err := imgsrc.Load(ctx, img)
	if err != nil || facts.Kind != imgsrc.KindIndex {
		return err == nil && !unpackable(facts), err
	}
	there := len(facts.Children) == 0
	for _, other := range list.Images {
		if !slices.Contains(img.Desc().Lists, other.Desc().Digest) {
			continue
		}
		facts, err := imgsrc.Load(ctx, other)
		if err != nil || unpackable(facts) {
			return false, err
		}
		there = true
	}
	return there, nil
}

// unpackable says whether it is an image that can be unpacked. Signatures of sigstore have the config of an image, and the
// layers of an encrypted one are no tars.
func unpackable(facts *imgsrc.Facts) bool {
	return facts.Kind != imgsrc.KindArtifact && !slices.ContainsFunc(facts.Layers, func(l imgsrc.LayerFacts) bool {
		return layer.CheckMediaType(l.MediaType) != nil
	})
}

// keepable fails with imgsrc.ErrUnsupported if a store cannot keep what has this manifest: an artifact, or what has a layer that
// is no tar.
func keepable(text []byte, mediaType string) error {
	facts := imgsrc.Describe(&imgsrc.Desc{Digest: digest.FromBytes(text), MediaType: mediaType}, text)
	if facts.ManifestErr != nil {
		return nil //nolint:nilerr // whoever copies it says what is wrong with it
	}
	for n, l := range facts.Layers {
		if err := layer.CheckMediaType(l.MediaType); err != nil {
			return fmt.Errorf("layer %d is none of an image: %w; an OCI layout keeps it as it is", n, err)
		}
	}
	if facts.Kind == imgsrc.KindArtifact {
		return fail(imgsrc.ErrUnsupported, "it is an artifact, and no image: an OCI layout keeps it as it is")
	}
	return nil
}

// leaveOut says that an artifact or a name is not loaded with the rest, and why.
func (o *Ops) leaveOut(what, which, why string) {
	o.log.Warn("loading", what, which, "error", "left out: "+redact(why))
	o.Record("load-warning", "", fmt.Sprintf("the %s %s was left out: %s", what, which, why))
}

// withoutArtifacts leaves the artifacts out, and says which. Error: imgsrc.ErrUnsupported if there is nothing else.
func withoutArtifacts(all []loadable, to Receiver, leaveOut func(what, which, why string)) ([]loadable, error) {
	if images(all) == 0 {
		what := "it is an artifact, and no image"
		if len(all) > 1 {
			what = fmt.Sprintf("there are %d artifacts in it, and no image", len(all))
		}
		return nil, fail(imgsrc.ErrUnsupported, "%s: %s holds images alone; an OCI layout keeps artifacts", what, to.Name())
	}
	return slices.DeleteFunc(all, func(l loadable) bool {
		if !l.artifact {
			return false
		}
		which := string(l.Desc().Digest)
		if len(l.names) > 0 {
			which = quote(l.names[0])
		}
		leaveOut("artifact", which, to.Name()+" holds images alone")
		return true
	}), nil
}

// storable returns names as they are stored. One that cannot be is left out: the image is loaded all the same.
func storable(names []string, to Receiver, leaveOut func(what, which, why string)) []string {
	var all []string
	for _, name := range names {
		full, err := to.CheckName(name)
		if err != nil {
			leaveOut("name", quote(name), err.Error())
			continue
		}
		if !slices.Contains(all, full) {
			all = append(all, full)
		}
	}
	return all
}
