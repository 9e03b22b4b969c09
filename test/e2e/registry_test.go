package e2e

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/imgfs/imgfs/test/forward"
)

// The user and the password of a registry with -auth, and the password's hash as htpasswd -B makes it.
const (
	registryUser     = "ann"
	registryPassword = "secret"
	registryHash     = "$2a$05$PjglcpI6QkXM.kR8Jp0HcetnDUT3lZAR7ARqqr/PpUoxMRePsQ3Cu"
)

// A registryServer is Debian's docker-registry in a process of its own, or an embedded one that can hold uploads.
type registryServer struct {
	process *exec.Cmd
	proxy   *forward.Proxy // what is none of the others, but leads to one
	*holding
	answering *answering
	server    *httptest.Server
}

func (r *registryServer) stop() {
	if r.process != nil {
		_ = r.process.Process.Kill()
		_ = r.process.Wait()
		return
	}
	if r.proxy != nil {
		r.proxy.Close()
		return
	}
	_ = r.server.Listener.Close() // before what waits is let go: it is not to come to its end
	r.server.CloseClientConnections()
	r.open()
	r.server.Close()
}

// again starts what was stopped, as it was and where it was. What is at a gate is not held a second time.
func (r *registryServer) again(ts *testscript.TestScript) {
	if r.process != nil {
		old := r.process
		r.process = exec.Command(old.Path, old.Args[1:]...)
		r.process.Env = old.Env
		ts.Check(r.process.Start())
		return
	}
	l, err := net.Listen("tcp", r.server.Listener.Addr().String())
	ts.Check(err)
	r.server = serve(l, r.server.Config.Handler)
}

func serve(l net.Listener, handler http.Handler) *httptest.Server {
	server := httptest.NewUnstartedServer(handler)
	_ = server.Listener.Close()
	server.Listener = l
	server.Start()
	return server
}

func startRegistry(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	kind, name, origin := "", "", ""
	switch len(args) {
	case 1:
		name = args[0]
	case 2:
		kind, name = args[0], args[1]
	case 3:
		kind, origin, name = args[0], args[1], args[2]
	}
	usage(ts, neg, args, name != "" && slices.Contains([]string{"", "-auth", "-held", "-stuck", "-answers", "-flaky"}, kind) == (origin == "") && (origin == "" || kind == "-mirror"),
		"registry [-auth|-held|-stuck|-answers|-flaky|-mirror ORIGIN] NAME")
	if kind == "-held" || kind == "-stuck" || kind == "-answers" {
		h := &holding{next: registry.New(registry.Logger(log.New(io.Discard, "", 0))), gate: make(chan struct{}), downloads: kind == "-stuck"}
		r := &registryServer{holding: h}
		handler := http.Handler(h)
		if kind == "-answers" {
			r.answering = &answering{holding: h, next: h.next, how: "right"}
			handler = r.answering
		}
		r.server, s.registries[name] = serve(listen(ts), handler), r
		ts.Setenv(name, strings.TrimPrefix(r.server.URL, "http://"))
		return
	}
	if kind == "-flaky" {
		server := serve(listen(ts), &flaky{next: registry.New(registry.Logger(log.New(io.Discard, "", 0))), asked: map[string]int{}})
		s.registries[name] = &registryServer{holding: &holding{gate: make(chan struct{})}, server: server}
		ts.Setenv(name, strings.TrimPrefix(server.URL, "http://"))
		return
	}
	need(ts, false, []string{"docker-registry"})
	dir := filepath.Join(s.work, ".registry-"+name)
	ts.Check(os.MkdirAll(filepath.Join(dir, "data"), 0o755))
	address := freeAddress(ts)
	config := fmt.Sprintf("version: 0.1\nlog: {level: warn}\nstorage: {filesystem: {rootdirectory: %s/data}}\nhttp: {addr: %s}\n", dir, address)
	if kind == "-auth" {
		ts.Check(os.WriteFile(filepath.Join(dir, "htpasswd"), []byte(registryUser+":"+registryHash+"\n"), 0o644))
		config += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s/htpasswd}}\n", dir)
	}
	if kind == "-mirror" {
		config += fmt.Sprintf("proxy: {remoteurl: \"http://%s\"}\n", ts.Getenv(origin))
	}
	ts.Check(os.WriteFile(filepath.Join(dir, "config.yml"), []byte(config), 0o644))
	output, err := os.Create(filepath.Join(dir, "log"))
	ts.Check(err)
	defer output.Close()
	cmd := exec.Command("docker-registry", "serve", filepath.Join(dir, "config.yml"))
	cmd.Env, cmd.Stdout, cmd.Stderr = s.env, output, output
	ts.Check(cmd.Start())
	s.registries[name] = &registryServer{process: cmd}
	untilItAnswers(ts, address)
	ts.Setenv(name, address)
}

// untilItAnswers waits for a registry.
func untilItAnswers(ts *testscript.TestScript, address string) {
	poll(ts, "a registry to answer at "+address, func() bool {
		resp, err := http.Get("http://" + address + "/v2/")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return true
	})
}

// stopRegistry stops a registry in the middle of a script.
func stopRegistry(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	usage(ts, neg, args, len(args) == 1 && s.registries[args[0]] != nil, "stopregistry NAME")
	s.registries[args[0]].stop()
	if s.stopped == nil {
		s.stopped = map[string]*registryServer{}
	}
	s.stopped[args[0]] = s.registries[args[0]]
	delete(s.registries, args[0])
}

// startAgain starts one that was stopped.
func startAgain(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	usage(ts, neg, args, len(args) == 1 && s.stopped[args[0]] != nil && s.stopped[args[0]].proxy == nil, "startagain NAME")
	r := s.stopped[args[0]]
	r.again(ts)
	delete(s.stopped, args[0])
	s.registries[args[0]] = r
	untilItAnswers(ts, ts.Getenv(args[0]))
}

// ports are those that registries have had.
var ports sync.Map

// listen listens on the loopback interface. A registry's port is of those that a system gives to nobody who does not name one:
// so it is its own before the registry listens there, and while it is stopped.
func listen(ts *testscript.TestScript) net.Listener {
	for range 1000 {
		port := 10_000 + rand.IntN(20_000)
		if _, had := ports.LoadOrStore(port, true); had {
			continue
		}
		if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			return l
		}
	}
	ts.Fatalf("there is no port for a registry")
	return nil
}

// freeAddress is a port of the loopback interface that nobody listens on.
func freeAddress(ts *testscript.TestScript) string {
	l := listen(ts)
	defer l.Close()
	return l.Addr().String()
}

// holding is a registry in which whatever sends the bytes of a blob waits at a gate: until the gate is opened, or the
// client is gone. With downloads it is the registry itself that waits, after the first half of a blob.
type holding struct {
	next      http.Handler
	downloads bool
	gate      chan struct{}
	let       sync.Once    // closes gate
	waiting   atomic.Int32 // uploads or downloads at the gate
	given     atomic.Int32 // those that were given up there
}

func (h *holding) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.downloads && r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256:") {
		h.half(w, r)
		return
	}
	if !h.downloads && (r.Method == http.MethodPatch || r.Method == http.MethodPut) && strings.Contains(r.URL.Path, "/blobs/uploads/") {
		if !h.hold(r) {
			return
		}
	}
	h.next.ServeHTTP(w, r)
}

// flaky is a registry that has a bad day: who asks for a manifest is told to come again later, and then that nobody is
// there; a blob breaks off half way, and is there as a whole only.
type flaky struct {
	next http.Handler

	mu    sync.Mutex
	asked map[string]int // by path
}

func (f *flaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	blob, n := strings.Contains(r.URL.Path, "/blobs/sha256:"), 2
	if r.Method == http.MethodGet && (blob || strings.Contains(r.URL.Path, "/manifests/")) {
		f.mu.Lock()
		n = f.asked[r.URL.Path]
		f.asked[r.URL.Path]++
		f.mu.Unlock()
	}
	switch {
	case n == 0 && blob:
		answer := httptest.NewRecorder()
		f.next.ServeHTTP(answer, r)
		body := answer.Body.Bytes()
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body[:len(body)/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case n == 0:
		w.Header().Set("Retry-After", "0")
		w.WriteHeader(http.StatusTooManyRequests)
	case n == 1 && !blob:
		w.WriteHeader(http.StatusServiceUnavailable)
	default:
		f.next.ServeHTTP(w, r)
	}
}

// half answers with the first half of a blob, and with the second when the gate is open. A config comes whole.
func (h *holding) half(w http.ResponseWriter, r *http.Request) {
	answer := httptest.NewRecorder()
	h.next.ServeHTTP(answer, r)
	body := answer.Body.Bytes()
	part := len(body) / 2
	if bytes.HasPrefix(body, []byte("{")) {
		part = len(body)
	}
	for name, values := range answer.Header() {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(answer.Code)
	_, _ = w.Write(body[:part])
	_ = http.NewResponseController(w).Flush()
	if part < len(body) && h.hold(r) {
		_, _ = w.Write(body[part:])
	}
}

// hold returns when the gate is open, or false when the client is gone.
func (h *holding) hold(r *http.Request) bool {
	h.waiting.Add(1)
	defer h.waiting.Add(-1)
	// A server notices a client that has gone only once it has read the whole request.
	body, err := io.ReadAll(r.Body)
	if err == nil {
		r.Body = io.NopCloser(bytes.NewReader(body))
		select {
		case <-h.gate:
			return true
		case <-r.Context().Done():
		}
	}
	h.given.Add(1)
	return false
}

func holdingRegistry(ts *testscript.TestScript, args []string) *registryServer {
	r := of(ts).registries[args[0]]
	if r == nil || r.holding == nil {
		ts.Fatalf("%s is not a registry that was started with -held, -stuck or -answers", args[0])
	}
	return r
}

func held(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) == 1, "held NAME")
	r := holdingRegistry(ts, args)
	poll(ts, "an upload or a download", func() bool { return r.waiting.Load() > 0 })
}

func release(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) == 1, "release NAME")
	holdingRegistry(ts, args).open()
}

func abandoned(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) == 1, "abandoned NAME")
	r := holdingRegistry(ts, args)
	poll(ts, "the end of all uploads and downloads", func() bool { return r.waiting.Load() == 0 && r.given.Load() > 0 })
}

func (h *holding) open() { h.let.Do(func() { close(h.gate) }) }
