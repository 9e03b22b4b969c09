package fs

import (
	"context"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/opencontainers/go-digest"
)

// The mountpoint's own entries. Like rows, they keep their numbers.
const (
	topRoot = iota + 1
	topReadme
	topIDs
	topEvents
	topPull
	topLoad
	topError
	topJobs
)

// topOCI is oci/, which has a view of its own.
const topOCI = 9

// topControls are the controls of the mountpoint. They are always empty.
var topControls = map[uint32]string{topPull: "pull", topLoad: "load"}

// imagesEntry is images/ in viewNames, and registry/ in viewRemoteNames: the interned path "".
const imagesEntry = 0

var (
	idsNode    = makeNode(0, viewTop, topIDs)
	imagesNode = makeNode(0, viewNames, imagesEntry)

	registryNode = makeNode(0, viewRemoteNames, imagesEntry)
)

// topEntries are listed in the mountpoint, in this order.
var topEntries = []struct {
	name string
	node node
	mode uint32
}{
	{"README", makeNode(0, viewTop, topReadme), syscall.S_IFREG},
	{"ids", idsNode, syscall.S_IFDIR},
	{"images", imagesNode, syscall.S_IFDIR},
	{"registry", registryNode, syscall.S_IFDIR},
	{"oci", ociNode, syscall.S_IFDIR},
	{"events", makeNode(0, viewTop, topEvents), syscall.S_IFREG},
	{"jobs", jobsNode, syscall.S_IFDIR},
	{"pull", makeNode(0, viewTop, topPull), syscall.S_IFREG},
	{"load", makeNode(0, viewTop, topLoad), syscall.S_IFREG},
	{"error", makeNode(0, viewTop, topError), syscall.S_IFREG},
}

// topView is the mountpoint, its files, and ids/.
type topView struct{ f *FS }

func topIno(entry uint32) ino {
	if entry == topRoot {
		return 1 // the root's, by convention
	}
	return topSeed.nth(uint64(entry))
}

// has says whether this mount has an entry: registry/ only if something can be found in it.
func (v topView) has(n node) bool { return n != registryNode || v.f.remotes != nil }

// topEntryIno is the inode number of an entry of the mountpoint.
func topEntryIno(n node) ino {
	switch n {
	case imagesNode:
		return imagesIno
	case registryNode:
		return registryIno
	case jobsNode:
		return jobsIno
	case ociNode:
		return ociIno
	}
	return topIno(n.entry())
}

func (v topView) attr(ctx context.Context, n node, cheap bool) (attr, error) {
	i := topIno(n.entry())
	switch n.entry() {
	case topRoot:
		_, changed := v.f.lookTop()
		return dirAttr(i, changed, true), nil
	case topReadme:
		return fileAttr(i, int64(len(v.f.readme)), v.f.readmeTime), nil
	case topIDs:
		a := dirAttr(i, v.f.refresh(ctx).idsTime, true)
		v.f.takesWrites(&a, v.f.allowRemove && !v.f.readOnly)
		return a, nil
	case topEvents:
		text, changed := v.f.ops.Events()
		a := fileAttr(i, int64(len(text)), latest(changed, v.f.started))
		a.live = true
		return a, nil
	case topError:
		text, changed := v.f.lastError("")
		return fileAttr(i, int64(len(text)), latest(changed, v.f.started)).asLive(), nil
	case topPull, topLoad:
		return v.f.controlAttr(i, 0, latest(v.f.control.written(n), v.f.started)), nil
	}
	return attr{}, syscall.ENOENT
}

func (v topView) lookup(ctx context.Context, dir node, name string) (found, error) {
	if dir.entry() != topIDs {
		for _, e := range topEntries {
			if e.name == name && v.has(e.node) {
				return found{node: e.node}, nil
			}
		}
		return found{}, syscall.ENOENT
	}
	s := v.f.refresh(ctx)
	if img := s.byID[name]; img != nil {
		return found{node: img.node(viewImage, 0)}, nil
	}
	img := s.unlisted(name)
	if img == nil {
		var err error
		if img, err = v.f.askChild(ctx, s, name); err != nil {
			return found{}, err
		}
	}
	if img != nil && img.id == name { // it was asked for just now, and its id is its digest: an index, an artifact
		return found{node: img.node(viewImage, 0)}, nil
	}
	if img != nil {
		link := name + linkSeparator + img.id
		v.f.sweepTargets()
		return found{node: makeNode(0, viewIDLinks, v.f.targets.number(link)), keep: keepNot}, nil
	}
	return found{}, syscall.ENOENT
}

// minPrefix is how many digits of an id name an image, if they do so for one only.
const minPrefix = 3

// unlisted returns the image that is meant by an unambiguous beginning of its id, or by a manifest's digest.
func (s *state) unlisted(name string) *image {
	if len(name) < minPrefix {
		return nil
	}
	e := s.snap.ByPrefix(name)
	if e == nil {
		e = s.snap.ByDigest(digest.NewDigestFromEncoded(digest.SHA256, name))
	}
	if e == nil {
		return nil
	}
	return s.byID[e.ID]
}

// idLinksView is the links from what is not listed in ids/ to what is: a directory has one path.
type idLinksView struct{ f *FS }

func (v idLinksView) target(n node) (name, id string, err error) {
	s, _ := v.f.targets.name(n.entry())
	name, id, ok := strings.Cut(s, linkSeparator)
	if !ok {
		return "", "", syscall.ENOENT
	}
	return name, id, nil
}

func (v idLinksView) attr(_ context.Context, n node, _ bool) (attr, error) {
	name, id, err := v.target(n)
	return linkAttr(topIno(topIDs).under(name), len(id), v.f.state.Load().idsTime), err
}

func (v idLinksView) readlink(_ context.Context, n node) ([]byte, error) {
	_, id, err := v.target(n)
	return []byte(id), err
}

func (idLinksView) lookup(context.Context, node, string) (found, error) {
	return found{}, syscall.ENOTDIR
}

func (idLinksView) list(context.Context, node, uint64, func(dirent) bool) error {
	return syscall.ENOTDIR
}

func (idLinksView) read(context.Context, node, []byte, int64) (fuse.ReadResult, error) {
	return nil, syscall.EINVAL
}

func (v topView) list(ctx context.Context, dir node, from uint64, emit func(dirent) bool) error {
	switch dir.entry() {
	case topRoot:
		oci, _ := v.f.lookTop()
		for i := int(min(from, uint64(len(topEntries)))); i < len(topEntries); i++ {
			e := topEntries[i]
			if !v.has(e.node) || e.node == ociNode && !oci {
				continue
			}
			if !emit(dirent{name: e.name, node: e.node, ino: topEntryIno(e.node), mode: e.mode, cookie: uint64(i) + 1}) {
				return nil
			}
		}
		return nil
	case topIDs:
		return v.listIDs(ctx, from, emit)
	}
	return syscall.ENOTDIR
}

// listIDs lists the images in the order in which the mount met them: an image that comes or goes while somebody lists
// moves no other.
func (v topView) listIDs(ctx context.Context, from uint64, emit func(dirent) bool) error {
	for _, img := range v.f.refresh(ctx).order {
		if uint64(img.slot) <= from {
			continue
		}
		if !emit(dirent{name: img.id, node: img.node(viewImage, 0), ino: img.ino, mode: syscall.S_IFDIR, cookie: uint64(img.slot)}) {
			return nil
		}
	}
	return nil
}

func (v topView) read(ctx context.Context, n node, dest []byte, off int64) (fuse.ReadResult, error) {
	switch n.entry() {
	case topReadme:
		return readBytes(v.f.readme, dest, off), nil
	case topEvents:
		text, _ := v.f.ops.Events()
		return readBytes(text, dest, off), nil
	case topError:
		text, _ := v.f.lastError("")
		return readBytes(text, dest, off), nil
	case topPull, topLoad:
		return readBytes(nil, dest, off), nil
	}
	return nil, syscall.EISDIR
}

func (v topView) readlink(context.Context, node) ([]byte, error) { return nil, syscall.EINVAL }
