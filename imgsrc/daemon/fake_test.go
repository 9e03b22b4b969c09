package daemon

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"

	"github.com/imgfs/imgfs/test/images"
	"github.com/imgfs/imgfs/test/servers"
)

// A fakeEngine answers as an engine does, as far as this package asks.
type fakeEngine struct {
	testing.TB
	server *httptest.Server
	host   string

	mu     sync.Mutex
	images []*fakeImage
	calls  map[string]int // by method and the last word of the path
	events []chan string
	save   http.HandlerFunc // instead of the images' own
	fail   map[string]int   // status, by call
	silent map[string]bool  // calls that are taken, and not answered

	containerd bool // it says that it has the containerd image store
	docker     bool // it says that it is Docker's own
}

type fakeImage struct {
	id         string // 64 digits
	tags       []string
	digests    []string
	layers     []digest.Digest
	containers []string
	archive    []byte
	stored     bool   // by the containerd image store
	manifest   []byte // which is the image's digest then, unless it is an index's
	mediaType  string // of the manifest; empty: OCI's
}

// newFake starts an engine on a socket.
func newFake(t testing.TB, images ...*fakeImage) *fakeEngine {
	t.Helper()
	f := &fakeEngine{TB: t, images: images, calls: map[string]int{}, fail: map[string]int{}}
	socket := filepath.Join(servers.ShortDir(t), "sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	f.host = "unix://" + socket
	f.server = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	f.server.Listener.Close()
	f.server.Listener = l
	f.server.Start()
	t.Cleanup(f.stop)
	return f
}

func (f *fakeEngine) stop() {
	f.mu.Lock()
	for _, c := range f.events {
		close(c)
	}
	f.events = nil
	f.mu.Unlock()
	f.server.CloseClientConnections()
	f.server.Close()
}

// count is how often something was asked.
func (f *fakeEngine) count(call string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[call]
}

// tell sends an event to all who listen.
func (f *fakeEngine) tell(kind, action string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.events {
		c <- fmt.Sprintf(`{"Type":%q,"Action":%q,"Actor":{"ID":"x"},"time":1}`, kind, action)
	}
}

func (f *fakeEngine) find(name string) *fakeImage {
	for _, img := range f.images {
		if strings.TrimPrefix(name, "sha256:") == img.id || slices.Contains(img.tags, familiar(name)) {
			return img
		}
	}
	return nil
}

// familiar is how an engine shows a name.
func familiar(name string) string {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarString(reference.TagNameOnly(ref))
}

func (f *fakeEngine) serve(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	if strings.HasPrefix(path, "/v1.") {
		_, path, _ = strings.Cut(path[1:], "/")
		path = "/" + path
	}
	word := path[strings.LastIndex(path, "/")+1:]
	if r.Method == http.MethodDelete {
		word = "name"
	}
	call := r.Method + " " + word
	if word == "json" && strings.HasPrefix(path, "/images/") && path != "/images/json" {
		call = "inspect"
	}
	f.mu.Lock()
	f.calls[call]++
	status, silent := f.fail[call], f.silent[call]
	save := f.save
	f.mu.Unlock()
	if silent {
		<-r.Context().Done()
		return
	}
	w.Header().Set("Api-Version", "1.44")
	if status != 0 {
		f.refuse(w, status, "the fake refuses")
		return
	}
	switch {
	case path == "/_ping":
		_, _ = w.Write([]byte("OK"))
	case call == "GET get" && save != nil:
		save(w, r)
	case call == "GET get":
		f.sendImage(w, r)
	case path == "/events":
		f.sendEvents(w, r)
	default:
		f.mu.Lock()
		defer f.mu.Unlock()
		f.answer(w, r, path, call)
	}
}

func (f *fakeEngine) refuse(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": message})
}

func (f *fakeEngine) sendImage(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	img := f.find(r.URL.Query().Get("names"))
	f.mu.Unlock()
	if img == nil {
		f.refuse(w, http.StatusNotFound, "no such image")
		return
	}
	_, _ = w.Write(img.archive)
}

func (f *fakeEngine) sendEvents(w http.ResponseWriter, r *http.Request) {
	c := make(chan string, 100)
	f.mu.Lock()
	f.events = append(f.events, c)
	f.mu.Unlock()
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	for {
		select {
		case e, ok := <-c:
			if !ok {
				return
			}
			fmt.Fprintln(w, e)
			w.(http.Flusher).Flush()
		case <-r.Context().Done():
			f.mu.Lock()
			f.events = slices.DeleteFunc(f.events, func(o chan string) bool { return o == c })
			f.mu.Unlock()
			return
		}
	}
}

// answer is called with f.mu held.
func (f *fakeEngine) answer(w http.ResponseWriter, r *http.Request, path, call string) {
	w.Header().Set("Content-Type", "application/json")
	send := func(v any) { _ = json.NewEncoder(w).Encode(v) }
	name := strings.TrimPrefix(path, "/images/")
	switch {
	case path == "/images/json":
		all := []map[string]any{}
		for _, img := range f.images {
			tags := img.tags
			if len(tags) == 0 {
				tags = []string{noTag}
			}
			all = append(all, map[string]any{"Id": "sha256:" + img.id, "RepoTags": tags, "RepoDigests": img.digests, "Size": 1000})
		}
		send(all)
	case path == "/containers/json":
		all := []map[string]any{}
		for _, img := range f.images {
			for _, c := range img.containers {
				all = append(all, map[string]any{"Id": c, "ImageID": "sha256:" + img.id})
			}
		}
		send(all)
	case path == "/info":
		status := [][2]string{}
		if f.containerd {
			status = append(status, [2]string{"driver-type", "io.containerd.snapshotter.v1"})
		}
		send(map[string]any{"DriverStatus": status})
	case path == "/version" && f.docker:
		send(map[string]any{"Components": []map[string]any{{"Name": "Engine"}}})
	case call == "inspect":
		img := f.find(strings.TrimSuffix(name, "/json"))
		if img == nil {
			f.refuse(w, http.StatusNotFound, "no such image")
			return
		}
		answer := map[string]any{"Id": "sha256:" + img.id, "RepoTags": img.tags, "RootFS": map[string]any{"Type": "layers", "Layers": img.layers}}
		if img.stored {
			answer["Descriptor"] = map[string]any{"digest": "sha256:" + img.id}
			if img.manifest != nil {
				answer["Descriptor"] = map[string]any{"digest": "sha256:" + img.id, "size": len(img.manifest), "mediaType": cmp.Or(img.mediaType, "application/vnd.oci.image.manifest.v1+json")}
			}
		}
		send(answer)
	case call == "POST tag":
		f.tag(w, f.find(strings.TrimSuffix(name, "/tag")), familiar(r.URL.Query().Get("repo")+":"+r.URL.Query().Get("tag")))
	case call == "DELETE name":
		f.untag(w, r, familiar(name))
	default:
		f.refuse(w, http.StatusNotFound, "page not found")
	}
}

func (f *fakeEngine) tag(w http.ResponseWriter, img *fakeImage, name string) {
	if img == nil {
		f.refuse(w, http.StatusNotFound, "no such image")
		return
	}
	f.drop(name)
	img.tags = append(img.tags, name)
	w.WriteHeader(http.StatusCreated)
}

func (f *fakeEngine) untag(w http.ResponseWriter, r *http.Request, name string) {
	img := f.find(name)
	if img == nil {
		f.refuse(w, http.StatusNotFound, "no such image")
		return
	}
	if r.URL.Query().Get("noprune") != "1" || r.URL.Query().Get("force") != "" {
		f.Error("an image must not be pruned, nor removed by force")
	}
	f.drop(name)
	if len(img.tags) == 0 {
		f.Error("the last name was removed, and with it the image")
	}
	_, _ = w.Write([]byte("[]"))
}

func (f *fakeEngine) drop(name string) {
	for _, img := range f.images {
		img.tags = slices.DeleteFunc(img.tags, func(n string) bool { return n == name })
	}
}

// parts are what the archives of an image are made of.
type parts struct {
	config []byte
	layers [][]byte
}

// partsOf makes an image of layers.
func partsOf(t testing.TB, layers ...[]byte) parts {
	t.Helper()
	ids := []digest.Digest{}
	for _, l := range layers {
		ids = append(ids, digest.FromBytes(l))
	}
	return parts{jsonOf(t, map[string]any{
		"architecture": "amd64", "os": "linux", "created": "2020-01-01T00:00:00.123456789Z",
		"config": map[string]any{"Cmd": []string{"sh"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": ids},
	}), layers}
}

func (p parts) id() string { return digest.FromBytes(p.config).Encoded() }

func (p parts) diffIDs() []digest.Digest {
	var ids []digest.Digest
	for _, l := range p.layers {
		ids = append(ids, digest.FromBytes(l))
	}
	return ids
}

// image is the image in an engine.
func (p parts) image(archive []byte, tags ...string) *fakeImage {
	return &fakeImage{id: p.id(), tags: tags, layers: p.diffIDs(), archive: archive}
}

// legacy is the image as "docker save" wrote it before Docker 25: a layer that is there already is a link.
func (p parts) legacy(t testing.TB) []byte {
	t.Helper()
	files := []tarFile{{name: p.id() + ".json", body: p.config}}
	var names []string
	seen := map[digest.Digest]string{}
	for n, l := range p.layers {
		dir := digest.FromString(fmt.Sprint("v1 id of ", n)).Encoded()
		name := dir + "/layer.tar"
		names = append(names, name)
		files = append(files, tarFile{name: dir + "/"}, tarFile{name: dir + "/VERSION", body: []byte("1.0")}, tarFile{name: dir + "/json", body: []byte("{}")})
		d := digest.FromBytes(l)
		if other := seen[d]; other != "" {
			files = append(files, tarFile{name: name, link: "../" + other})
			continue
		}
		seen[d] = name
		files = append(files, tarFile{name: name, body: l})
	}
	files = append(files, tarFile{name: "manifest.json", body: jsonOf(t, []any{map[string]any{"Config": p.id() + ".json", "RepoTags": nil, "Layers": names}})})
	return tarOf(t, files...)
}

// modern is the image as "docker save" has written it since Docker 25, or as it writes it from the containerd image
// store: with compressed layers, under an index, whose digest is then the id.
func (p parts) modern(t testing.TB, compress bool) (id string, archive []byte) {
	t.Helper()
	id, archive, _ = p.saved(t, compress, compress)
	return id, archive
}

// saved is likewise; the containerd image store has compressed layers, and an index only if that was built or pulled.
func (p parts) saved(t testing.TB, compress, inIndex bool) (id string, archive, stored []byte) {
	t.Helper()
	files := map[string][]byte{}
	blob := func(b []byte) string {
		name := "blobs/sha256/" + digest.FromBytes(b).Encoded()
		files[name] = b
		return name
	}
	descriptor := func(mediaType string, b []byte) map[string]any {
		return map[string]any{"mediaType": mediaType, "digest": digest.FromBytes(b), "size": len(b)}
	}
	config := blob(p.config)
	var names []string
	var layers []any
	for _, l := range p.layers {
		if compress {
			l = images.Gzipped(l)
		}
		names = append(names, blob(l))
		layers = append(layers, descriptor("application/vnd.oci.image.layer.v1.tar", l))
	}
	const manifestType = "application/vnd.oci.image.manifest.v1+json"
	manifest := jsonOf(t, map[string]any{"schemaVersion": 2, "config": descriptor("application/vnd.oci.image.config.v1+json", p.config), "layers": layers})
	blob(manifest)
	id = p.id()
	if compress {
		id = digest.FromBytes(manifest).Encoded()
	}
	if inIndex {
		other := []byte("of another platform, and not here")
		index := jsonOf(t, map[string]any{"schemaVersion": 2, "manifests": []any{descriptor(manifestType, other), descriptor(manifestType, manifest)}})
		blob(index)
		id = digest.FromBytes(index).Encoded()
	}
	files["manifest.json"] = jsonOf(t, []any{map[string]any{"Config": config, "RepoTags": nil, "Layers": names}})
	files["oci-layout"] = []byte(`{"imageLayoutVersion":"1.0.0"}`)
	var list []tarFile
	for name, b := range files {
		list = append(list, tarFile{name: name, body: b})
	}
	slices.SortFunc(list, func(a, b tarFile) int { return strings.Compare(a.name, b.name) })
	return id, tarOf(t, list...), manifest
}
