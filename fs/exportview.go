package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/imgfs/imgfs/imgsrc"
)

// exportView is export/: an image as one file, in the forms that other tools load. Only the README is listed: whoever walks
// the tree would otherwise read every image once more.
type exportView struct{ f *FS }

// The entries of export/. Like rows, they keep their numbers.
const (
	exportDir = iota
	exportReadme
	exportOCI
	exportDocker
	exportRootfs
)

// exports are the archives that resolve in export/.
var exports = []struct {
	name  string
	entry uint32
	doc   string
	own   bool // an index has one of its own; the others are its platform's
}{
	{"oci.tar", exportOCI, "an OCI image layout in a tar (oci-archive)", true},
	{"docker.tar", exportDocker, "what docker save writes (docker-archive)", false},
	{"rootfs.tar", exportRootfs, "the root file system, all layers merged (docker export)", false},
}

const exportReadmeName = "README"

func exportName(entry uint32) string {
	for _, x := range exports {
		if x.entry == entry {
			return x.name
		}
	}
	return exportReadmeName
}

// exportText is the README of export/.
func exportText(kind imgsrc.Kind) []byte {
	var b strings.Builder
	b.WriteString("This image as one file. It is made as it is read: nothing is written anywhere, and it can be read from any\n" +
		"offset on. These names resolve here, and are not listed:\n\n")
	for _, x := range exports {
		if kind == imgsrc.KindArtifact && !x.own {
			continue
		}
		fmt.Fprintf(&b, "  %-12s %s\n", x.name, x.doc)
	}
	switch kind {
	case imgsrc.KindArtifact:
		b.WriteString(exportArtifactTail)
	case imgsrc.KindIndex:
		b.WriteString("\noci.tar has the images for all platforms that are here; the others are links to those of this machine's.\n")
		fallthrough
	case imgsrc.KindImage:
		b.WriteString(exportTail)
	}
	return []byte(b.String())
}

const exportArtifactTail = `
  skopeo copy oci-archive:oci.tar oci:DIR      or to docker://HOST/REPO:TAG, or any other place
`

const exportTail = `
  docker load -i docker.tar
  podman load -i oci.tar                       or docker.tar
  skopeo copy oci-archive:oci.tar DEST         or docker-archive:docker.tar
  docker import rootfs.tar NAME:TAG            or podman import: files only, without the config
  tar -x -p --xattrs --xattrs-include='*' --numeric-owner -f rootfs.tar -C DIR
  cp docker.tar /srv/web.tar                   or rsync, scp, curl -r from a file server

podman and skopeo take a colon in a path for the beginning of a name: go here first, or by ids/<id>/export/.

Id, config and diff ids stay what they are. The layers in oci.tar are as they are here, those in docker.tar too if all are
compressed with gzip, and else uncompressed. docker.tar has the image's names in it and oci.tar the first of them; their
time is when those last changed, and rootfs.tar's the image's. What does not resolve cannot be had to the byte: whyNot in
layers/NN/info.json says why. A damaged layer is an error where it is read.
`

func (v exportView) at(ctx context.Context, n node) (*image, *rendered, ino, error) {
	img := v.f.image(n.image())
	render := img.render
	if n.entry() == exportDir || n.entry() == exportReadme {
		render = img.knownBare
	}
	r, err := render(ctx)
	if err != nil {
		return nil, nil, 0, err
	}
	i := img.ino.nth(uint64(rowByView[viewExport].id))
	if n.entry() != exportDir {
		i = i.under(exportName(n.entry()))
	}
	return img, r, i, nil
}

// exportLink returns where an index has an archive that is its platform's.
func (r *rendered) exportLink(entry uint32) (target string, ok bool) {
	if r.facts.Kind != imgsrc.KindIndex || r.platform == nil || entry != exportDocker && entry != exportRootfs {
		return "", false
	}
	return "../platforms/" + r.platform.Name + "/export/" + exportName(entry), true
}

func (v exportView) attr(ctx context.Context, n node, cheap bool) (attr, error) {
	if !cheap && (n.entry() == exportOCI || n.entry() == exportDocker) {
		v.f.refresh(ctx)
	}
	img, r, i, err := v.at(ctx, n)
	if err != nil {
		return attr{}, err
	}
	if target, ok := r.exportLink(n.entry()); ok {
		return linkAttr(i, len(target), r.created), nil
	}
	switch n.entry() {
	case exportDir:
		return dirAttr(i, r.created, r.damaged), nil
	case exportReadme:
		a := fileAttr(i, int64(len(exportText(r.facts.Kind))), r.created)
		a.live = r.damaged
		return a, nil
	case exportRootfs:
		t, err := img.rootfsTar(ctx)
		if err != nil {
			return attr{}, err
		}
		return fileAttr(i, t.Size(), r.created), nil
	}
	a, err := img.archive(ctx, n.entry())
	if err != nil {
		return attr{}, err
	}
	size, err := a.Size(ctx)
	return fileAttr(i, size, a.at).asLive(), err
}

func (v exportView) lookup(ctx context.Context, dir node, name string) (found, error) {
	if dir.entry() != exportDir {
		return found{}, syscall.ENOTDIR
	}
	if name == exportReadmeName {
		return found{node: makeNode(dir.image(), viewExport, exportReadme)}, nil
	}
	img := v.f.image(dir.image())
	r, err := img.render(ctx)
	if err != nil {
		return found{}, err
	}
	for _, x := range exports {
		if x.name != name {
			continue
		}
		if ok, err := img.canExport(ctx, r, x.entry); err != nil || !ok {
			return found{}, orNoEntry(err)
		}
		return found{node: img.node(viewExport, x.entry), keep: keepNot}, nil
	}
	return found{}, syscall.ENOENT
}

// canExport says whether the image has what an archive is made of, be it damaged. No layer is read for that.
func (img *image) canExport(ctx context.Context, r *rendered, entry uint32) (bool, error) {
	f := r.facts
	switch {
	case f.ManifestErr != nil:
		return false, r.noManifest()
	case entry == exportOCI:
		return true, nil
	case f.Kind == imgsrc.KindIndex:
		_, ok := r.exportLink(entry)
		if !ok {
			return false, nil
		}
		return img.platformHas(ctx, r, (*image).render, func(child *image, cr *rendered) (bool, error) { return child.canExport(ctx, cr, entry) })
	case f.Kind != imgsrc.KindImage:
		return false, nil
	case entry == exportRootfs:
		return img.hasRootfs(ctx, r)
	}
	for n := range f.Layers {
		if p, err := img.probe(ctx, r, n, contentDiff); err != nil || !p.ok {
			return false, err
		}
	}
	return true, nil
}

func (v exportView) list(ctx context.Context, dir node, from uint64, emit func(dirent) bool) error {
	if dir.entry() != exportDir {
		return syscall.ENOTDIR
	}
	img, _, i, err := v.at(ctx, dir)
	if err != nil {
		return err
	}
	if from < exportReadme {
		emit(dirent{name: exportReadmeName, node: img.node(viewExport, exportReadme), ino: i.under(exportReadmeName), mode: syscall.S_IFREG, cookie: exportReadme})
	}
	return nil
}

func (v exportView) read(ctx context.Context, n node, dest []byte, off int64) (fuse.ReadResult, error) {
	img, r, _, err := v.at(ctx, n)
	if err != nil {
		return nil, err
	}
	k := 0
	switch n.entry() {
	case exportDir:
		return nil, syscall.EISDIR
	case exportReadme:
		return readBytes(exportText(r.facts.Kind), dest, off), nil
	case exportRootfs:
		k, err = img.readRootfsTar(ctx, dest, off)
	default:
		var a *archive
		if a, err = img.archive(ctx, n.entry()); err == nil {
			k, err = v.f.readEarly(ctx, earlyPlace{node: n}, dest, off, a.ReadAt)
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading export/%s at %d: %w", exportName(n.entry()), off, err)
	}
	return fuse.ReadResultData(dest[:k]), nil
}

func (v exportView) readlink(ctx context.Context, n node) ([]byte, error) {
	_, r, _, err := v.at(ctx, n)
	if err != nil {
		return nil, err
	}
	target, ok := r.exportLink(n.entry())
	if !ok {
		return nil, syscall.EINVAL
	}
	return []byte(target), nil
}
