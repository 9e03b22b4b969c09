package fs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/imgfs/imgfs/imgsrc"
)

// A row is one file of every image's directory. Lookup, listing and the README of the tree come from the table of rows.
type row struct {
	name string
	// id is the file's inode, cookie and node: it is never changed and never used again. The table is in the order of ids.
	id  uint32
	doc string

	// One of these says what is in it.
	body      func(*imgsrc.Facts) ([]byte, error)              // a pure function of the image; ErrAbsent: the image has no such file
	live      func(*imgsrc.Entry) []byte                       // what the catalog says at the moment; nil: the image has no such file
	derived   func(context.Context, *standing) ([]byte, error) // what image and catalog say together; ErrAbsent as with body
	view      uint16                                           // a directory: the view below it
	lastError bool                                             // the text of the image's last failed operation

	sure     bool // with body: every image of the kind has it, so that it is listed even if it cannot be had; with derived: all have it
	images   bool // with derived: every image has it, and neither an index of its own nor an artifact
	dated    bool // with derived: it is of the image's creation until it changes
	own      bool // an index has it itself; every other file of an index is its platform's
	bare     bool // the config has no say in it
	sketched bool // with derived: an image of which there is a sketch is not read for it
	diffIDs  bool // with body: of an image whose config has no diff ids, the layers are asked for them
	control  bool // takes writes; with live, that is what it says, otherwise it is empty
}

var table = []row{
	{name: "manifest.json", id: 1, bare: true, body: manifestJSON, sure: true, doc: "the manifest's exact bytes: sha256sum gives the image digest"},
	{name: "config.json", id: 2, body: configJSON, sure: true, doc: "the config's exact bytes: sha256sum gives the id"},
	{name: "config.oci.json", id: 3, body: imgsrc.ConfigOCI, sure: true, diffIDs: true, doc: "the config as an OCI image config"},
	{name: "config.docker.json", id: 4, body: imgsrc.ConfigDocker, sure: true, diffIDs: true, doc: "the config as a Docker schema 2 config"},
	{name: "history", id: 5, body: imgsrc.HistoryText, doc: "how it was made, oldest first, each step with its layer"},
	{name: "history.json", id: 6, body: imgsrc.HistoryJSON, doc: "the same as JSON"},
	{name: "annotations.json", id: 7, bare: true, own: true, body: imgsrc.AnnotationsJSON, doc: "the manifest's annotations"},
	{name: "annotations", id: 8, bare: true, own: true, view: viewAnnotations, doc: "a file for each annotation"},
	{name: "labels.json", id: 9, body: imgsrc.LabelsJSON, doc: "the config's labels"},
	{name: "labels", id: 10, view: viewLabels, doc: "a file for each label"},
	{name: "layers", id: 11, bare: true, view: viewLayers, doc: "the layers, base first: layers/00, layers/01, ..."},
	{name: "index.json", id: 12, bare: true, own: true, body: indexJSON, sure: true, doc: "the exact bytes, if this is an index of images for several platforms"},
	{name: "id", id: 13, bare: true, own: true, body: imgsrc.IDText, doc: "the image's id"},
	{name: "digest", id: 14, bare: true, own: true, body: imgsrc.DigestText, doc: "the manifest's digest"},
	{name: "names", id: 15, own: true, live: namesText, doc: "the names, one a line"},
	{name: "repo-digests", id: 16, own: true, live: repoDigestsText, doc: "the names by digest, one a line"},
	{name: "containers", id: 17, own: true, live: containersText, doc: "the ids of containers made from it, one a line"},
	{name: "created", id: 18, body: imgsrc.CreatedText, doc: "when it was made (RFC 3339)"},
	{name: "author", id: 19, body: imgsrc.Author, doc: "who made it"},
	{name: "comment", id: 20, body: imgsrc.Comment, doc: "the last step's comment"},
	{name: "architecture", id: 21, body: imgsrc.Architecture, doc: "the processor, in Go's words (amd64)"},
	{name: "os", id: 22, body: imgsrc.OS, doc: "the operating system, in Go's words (linux)"},
	{name: "variant", id: 23, body: imgsrc.Variant, doc: "the processor's variant (v8)"},
	{name: "size", id: 24, bare: true, body: imgsrc.SizeText, doc: "bytes of the config and the layers as the manifest gives them"},
	{name: "media-type", id: 25, bare: true, own: true, body: imgsrc.MediaTypeText, doc: "the manifest's media type"},
	{name: "user", id: 26, body: imgsrc.User, doc: "the user that it runs as"},
	{name: "env", id: 27, body: imgsrc.Env, doc: "the environment, one variable a line"},
	{name: "entrypoint", id: 28, body: imgsrc.Entrypoint, doc: "the entry point, one word a line"},
	{name: "cmd", id: 29, body: imgsrc.Cmd, doc: "the command, one word a line"},
	{name: "workdir", id: 30, body: imgsrc.WorkDir, doc: "the working directory"},
	{name: "exposed-ports", id: 31, body: imgsrc.ExposedPorts, doc: "ports, one a line (80/tcp)"},
	{name: "volumes", id: 32, body: imgsrc.Volumes, doc: "volumes, one a line"},
	{name: "stop-signal", id: 33, body: imgsrc.StopSignal, doc: "the signal that stops it"},
	{name: "healthcheck", id: 34, body: imgsrc.Healthcheck, doc: "the health check, as JSON"},
	{name: "tags", id: 35, own: true, live: tagsText, control: true, doc: "its names; write NAME to tag, -NAME to untag"},
	{name: "push", id: 36, own: true, control: true, doc: "write a destination to copy the image there"},
	{name: "error", id: 37, own: true, lastError: true, doc: "the text of this image's last failed operation"},
	{name: "rootfs", id: 38, view: viewRootfs, doc: "all layers merged, as a container would see it"},
	{name: "parent", id: 39, sketched: true, derived: parentText, doc: "the id of the image that this one was made from in one step"},
	{name: "children", id: 40, sketched: true, derived: childrenText, doc: "the ids of the images that were made from this one so, one a line"},
	{name: "inspect.json", id: 41, images: true, derived: inspectJSON, doc: "what podman image inspect shows of it"},
	{name: "info.json", id: 42, own: true, sure: true, derived: infoJSON, doc: "what is known of it, as JSON"},
	{name: "live.json", id: 43, bare: true, own: true, sure: true, sketched: true, derived: liveJSON, doc: "what this mount knows: where it is from, whose layers it shares"},
	{name: "platforms", id: 44, bare: true, own: true, view: viewPlatforms, doc: "an index: the image for each platform"},
	{name: "referrers", id: 45, bare: true, own: true, view: viewReferrers, doc: "what refers to it: signatures, lists of components"},
	{name: "artifact-type", id: 46, bare: true, own: true, body: imgsrc.ArtifactTypeText, doc: "what kind of artifact it is"},
	{name: "subject", id: 47, bare: true, own: true, body: imgsrc.SubjectText, doc: "the digest of the manifest that it is about"},
	{name: "SHA256SUMS", id: 48, bare: true, own: true, sure: true, dated: true, derived: sha256Sums, doc: "for sha256sum -c in this directory: manifest, config and layers"},
	{name: "export", id: 49, bare: true, own: true, view: viewExport, doc: "the image as one file: export/README says which"},
}

var (
	rowByName = map[string]*row{}
	rowByID   = map[uint32]*row{}
	rowByView = map[uint16]*row{}
)

func init() {
	for i := range table {
		r := &table[i]
		if rowByName[r.name] != nil || rowByID[r.id] != nil || i > 0 && table[i-1].id >= r.id {
			panic("fs: the table of files has " + r.name + " twice or out of order")
		}
		rowByName[r.name], rowByID[r.id] = r, r
		if r.view != 0 {
			rowByView[r.view] = r
		}
	}
}

func manifestJSON(f *imgsrc.Facts) ([]byte, error) {
	if f.Kind == imgsrc.KindIndex {
		return nil, imgsrc.ErrAbsent
	}
	return f.Manifest, f.ManifestErr
}

// errPerhapsIndex: neither the manifest nor its source says whether it is an index.
var errPerhapsIndex = errors.New("what kind of manifest it is cannot be told")

func indexJSON(f *imgsrc.Facts) ([]byte, error) {
	switch {
	case isPerhapsIndex(f):
		return nil, fmt.Errorf("%w: %w", errPerhapsIndex, f.ManifestErr)
	case f.Kind != imgsrc.KindIndex:
		return nil, imgsrc.ErrAbsent
	}
	return f.Manifest, f.ManifestErr
}

func isPerhapsIndex(f *imgsrc.Facts) bool {
	err := f.ManifestErr
	unread := err != nil && f.Manifest == nil && !errors.Is(err, imgsrc.ErrAbsent) && !errors.Is(err, imgsrc.ErrUntold)
	return unread && f.MediaType == "" && f.Desc.Config == ""
}

func configJSON(f *imgsrc.Facts) ([]byte, error) { return f.Config, f.ConfigErr }

func tagsText(e *imgsrc.Entry) []byte { return append([]byte{}, linesOf(e.TagNames())...) }

func namesText(e *imgsrc.Entry) []byte { return linesOf(slices.Concat(e.Names, e.RemoteNames)) }

func repoDigestsText(e *imgsrc.Entry) []byte {
	return linesOf(gather(e, func(h imgsrc.Held) []string { return h.RepoDigests }))
}

func containersText(e *imgsrc.Entry) []byte {
	return linesOf(gather(e, func(h imgsrc.Held) []string { return h.Containers }))
}

// gather joins what the manifests of an image say, each item once.
func gather(e *imgsrc.Entry, of func(imgsrc.Held) []string) []string {
	var all []string
	seen := map[string]bool{}
	for _, h := range e.Held {
		for _, s := range of(h) {
			if !seen[s] {
				seen[s] = true
				all = append(all, s)
			}
		}
	}
	return all
}

// linesOf is a list as a file; nil if there is nothing in it. Somebody may have put a name into a layout that would be more
// than one line, or none that can be read: that is not among them.
func linesOf(items []string) []byte {
	var text []byte
	for _, item := range items {
		if imgsrc.IsPrintable(item) {
			text = append(append(text, item...), '\n')
		}
	}
	return text
}

// readme is the README of the mountpoint: the cheat sheet for whoever lands there with ls.
func readme() []byte {
	var b strings.Builder
	b.WriteString(readmeHead)
	for _, r := range table {
		name := r.name
		if r.view != 0 {
			name += "/"
		}
		fmt.Fprintf(&b, "  %-20s %s\n", name, r.doc)
	}
	b.WriteString("\nEach layer, in ids/<id>/layers/00/ and so on:\n\n")
	for _, r := range layerTable {
		fmt.Fprintf(&b, "  %-20s %s\n", r.name, r.doc)
	}
	b.WriteString(readmeTail)
	return []byte(b.String())
}
