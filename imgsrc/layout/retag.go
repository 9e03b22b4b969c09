package layout

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/indexjson"
)

// retag returns index.json with other names: target has those in add, which nobody else has any more, and no longer
// those in remove. Entries that are not concerned stay as they are, in their order. Nil if there is nothing to change.
// Error: imgsrc.ErrNotFound if target does not have a name that is to be removed.
func (ix *index) retag(target descriptor, add, remove []string) ([]byte, error) {
	t := &tags{}
	for _, e := range ix.entries {
		t.list = append(t.list, &tagged{entry: e})
	}
	for _, name := range remove {
		if !t.remove(target, name) {
			return nil, fmt.Errorf("%w: the image has no name %q", imgsrc.ErrNotFound, name)
		}
	}
	for _, name := range add {
		t.add(target, name)
	}
	t.settle()
	if !t.changed {
		return nil, nil
	}
	return ix.encode(t.list), nil
}

// tags are the entries of an index whose names are being changed.
type tags struct {
	list    []*tagged
	changed bool
}

type tagged struct {
	entry
	lost bool // its name, and got no other
}

func (t *tags) remove(target descriptor, name string) bool {
	found := false
	for _, e := range t.list {
		if e.err == nil && e.variant() == target.variant() && e.name == name {
			t.setName(e, "")
			found = true
		}
	}
	return found
}

func (t *tags) add(target descriptor, name string) {
	var free, any *tagged // entries of target: without a name, and any
	has := false
	for _, e := range t.list {
		switch {
		case e.err != nil:
		case e.variant() != target.variant():
			if e.name == name {
				t.setName(e, "")
			} else if e.isNamed(name) { // by tools that do not know the other annotation
				t.setAnnotations(e, e.annotations.without(v1.AnnotationRefName))
			}
		case e.name == name:
			has = true
		default:
			if any == nil {
				any = e
			}
			if e.name == "" && free == nil {
				free = e
			}
		}
	}
	switch {
	case has:
	case free != nil:
		t.setName(free, name)
	case any != nil:
		e := &tagged{entry: any.entry}
		t.list = append(t.list, e)
		t.setName(e, name)
	default:
		e := &tagged{entry: entry{descriptor: target, object: object{
			{"mediaType", quote(target.mediaType)},
			{"digest", quote(target.digest.String())},
			{"size", json.RawMessage(strconv.FormatInt(target.size, 10))},
		}}}
		t.list = append(t.list, e)
		t.setName(e, name)
	}
}

// setName gives an entry a name, or takes it away. The name by which containerd knows it goes too: it would come back.
func (t *tags) setName(e *tagged, name string) {
	a := e.annotations.without(indexjson.NameContainerd, v1.AnnotationRefName)
	if name != "" {
		a = a.with(v1.AnnotationRefName, quote(name))
	}
	t.setAnnotations(e, a)
	e.name, e.lost = name, name == ""
}

func (t *tags) setAnnotations(e *tagged, a object) {
	e.annotations = a
	if len(a) == 0 {
		e.object = e.object.without("annotations")
	} else {
		e.object = e.object.with("annotations", a.encode())
	}
	e.raw = e.object.encode()
	t.changed = true
}

// settle drops the entries that have lost their names, but for the last of an image: that one stays, without a name.
func (t *tags) settle() {
	count := map[variant]int{}
	for _, e := range t.list {
		if e.err == nil {
			count[e.variant()]++
		}
	}
	kept := t.list[:0]
	for _, e := range t.list {
		if e.lost && count[e.variant()] > 1 {
			count[e.variant()]--
			continue
		}
		kept = append(kept, e)
	}
	t.list = kept
}

// encode returns the index with these entries, indented if it was.
func (ix *index) encode(list []*tagged) []byte {
	entries := []byte{'['}
	for i, e := range list {
		if i > 0 {
			entries = append(entries, ',')
		}
		entries = append(entries, e.raw...)
	}
	b := ix.object.with("manifests", append(entries, ']')).encode()

	var out bytes.Buffer
	body := bytes.TrimSpace(ix.raw)
	var err error
	if i := bytes.IndexByte(body, '\n'); i < 0 {
		err = json.Compact(&out, b)
	} else {
		rest := body[i+1:]
		indent := rest[:len(rest)-len(bytes.TrimLeft(rest, " \t"))]
		err = json.Indent(&out, b, "", string(indent))
	}
	if err != nil {
		panic(err) // it was put together from valid JSON
	}
	if bytes.HasSuffix(ix.raw, []byte("\n")) {
		out.WriteByte('\n')
	}
	return out.Bytes()
}
