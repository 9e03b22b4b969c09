package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/rogpeppe/go-internal/testscript"
)

// answering is a registry whose answers to requests for parts of a blob, or for any blob, or for tags are what a script says.
// Anything else is answered as it should be.
type answering struct {
	*holding // for those that are stuck
	next     http.Handler
	sent     atomic.Int64 // bytes of parts

	mu    sync.Mutex
	how   string
	asked []string // requests for manifests and blobs, since asked was called
	count int      // requests for parts since how was said
	token string   // that is good; "": none is asked for
	uses  int      // how often the token may be used
}

// howToAnswer are the words that answers takes.
var howToAnswer = map[string]func(a *answering, w http.ResponseWriter, r *http.Request, body []byte, from int){
	"right": (*answering).part,
	"stuck": func(a *answering, w http.ResponseWriter, r *http.Request, _ []byte, _ int) { a.half(w, r) },
	"none": func(_ *answering, w http.ResponseWriter, _ *http.Request, _ []byte, _ int) {
		w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
	},
	"whole":  (*answering).all,
	"cut":    (*answering).cut,
	"busy":   (*answering).busy,
	"wrong":  (*answering).part, // see spoil
	"tokens": (*answering).part, // see allowed

	"silent": nil, "failing": nil, "missing": nil, "false": nil, "nameless": nil, "listless": nil, "mute": nil, // see fails
}

func answers(ts *testscript.TestScript, neg bool, args []string) {
	known := false
	if len(args) == 2 {
		_, known = howToAnswer[args[1]]
	}
	usage(ts, neg, args, known, "answers NAME right|stuck|none|whole|cut|busy|wrong|tokens|silent|failing|missing|false|nameless|listless|mute")
	a := answeringRegistry(ts, args)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.how, a.count = args[1], 0
}

func sent(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) == 2, "sent NAME VARIABLE")
	ts.Setenv(args[1], strconv.FormatInt(answeringRegistry(ts, args).sent.Load(), 10))
}

// asked writes to a file what a registry has been asked for since the last time: a line for each manifest and each blob,
// sorted.
func asked(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) == 2, "asked NAME FILE")
	a := answeringRegistry(ts, args)
	a.mu.Lock()
	all := a.asked
	a.asked = nil
	a.mu.Unlock()
	slices.Sort(all)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(strings.Join(all, "")), 0o644))
}

// note keeps what is asked for, for asked: the last two parts of the path.
func (a *answering) note(r *http.Request) {
	dir, last := path.Split(r.URL.Path)
	kind := path.Base(dir)
	if r.Method != http.MethodGet || kind != "manifests" && kind != "blobs" {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = append(a.asked, kind+" "+last+"\n")
}

func answeringRegistry(ts *testscript.TestScript, args []string) *answering {
	r := of(ts).registries[args[0]]
	if r == nil || r.answering == nil {
		ts.Fatalf("%s is not a registry that was started with -answers", args[0])
	}
	return r.answering
}

func (a *answering) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.note(r)
	var from, to int
	ranged, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to)
	a.mu.Lock()
	how := a.how
	a.mu.Unlock()
	switch {
	case r.URL.Path == "/token":
		a.grant(w)
		return
	case how == "tokens" && !a.allowed(w, r), a.fails(how, w, r):
		return
	case r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/sha256:") || ranged == 0 && how != "wrong":
		a.next.ServeHTTP(w, r)
		return
	}
	a.mu.Lock()
	a.count++
	a.mu.Unlock()
	if how == "stuck" {
		a.half(w, r)
		return
	}
	r.Header.Del("Range")
	answer := httptest.NewRecorder()
	a.next.ServeHTTP(answer, r)
	body := answer.Body.Bytes()
	if how == "wrong" {
		spoil(body)
	}
	switch ranged {
	case 0:
		a.all(w, r, body, 0)
		return
	case 2:
		body = body[:min(len(body), to+1)]
	}
	howToAnswer[how](a, w, r, body, min(from, len(body)))
}

// fails answers a request for a blob, for what a tag means, for the names of repositories, or any, as a registry does that is not well. Not ok: it is to be answered as
// it should be.
func (a *answering) fails(how string, w http.ResponseWriter, r *http.Request) (ok bool) {
	blob := r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256:")
	tag := strings.Contains(r.URL.Path, "/manifests/") && !strings.Contains(r.URL.Path, "/manifests/sha256:")
	switch {
	case blob && how == "silent", tag && how == "nameless", strings.HasSuffix(r.URL.Path, "/_catalog") && how == "listless", how == "mute":
		return !a.hold(r)
	case blob && how == "failing":
		w.WriteHeader(http.StatusInternalServerError)
	case blob && how == "missing":
		w.WriteHeader(http.StatusNotFound)
	case blob && how == "false":
		_, _ = w.Write([]byte("{}"))
	default:
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.count++
	return true
}

// spoil changes a few bytes in the middle of whatever is as large as a layer.
func spoil(body []byte) {
	if len(body) > 64<<10 {
		for i := range body[len(body)/2:][:100] {
			body[len(body)/2+i] ^= 0x55
		}
	}
}

// part answers with what was asked for: body, from an offset on.
func (a *answering) part(w http.ResponseWriter, r *http.Request, body []byte, from int) {
	a.head(w, body, from)
	a.sent.Add(int64(len(body) - from)) // before the client has it, and the script looks
	_, _ = w.Write(body[from:])
}

func (a *answering) head(w http.ResponseWriter, body []byte, from int) {
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/*", from, len(body)-1))
	w.Header().Set("Content-Length", strconv.Itoa(len(body)-from))
	w.WriteHeader(http.StatusPartialContent)
}

func (a *answering) all(w http.ResponseWriter, _ *http.Request, body []byte, _ int) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body)
}

// cut breaks every second connection in the middle of a part.
func (a *answering) cut(w http.ResponseWriter, r *http.Request, body []byte, from int) {
	a.mu.Lock()
	now := a.count%2 == 1
	a.mu.Unlock()
	if !now {
		a.part(w, r, body, from)
		return
	}
	a.head(w, body, from)
	_, _ = w.Write(body[from:][:(len(body)-from)/2])
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// busy asks for a second's patience, once.
func (a *answering) busy(w http.ResponseWriter, r *http.Request, body []byte, from int) {
	a.mu.Lock()
	now := a.count == 1
	a.mu.Unlock()
	if !now {
		a.part(w, r, body, from)
		return
	}
	w.Header().Set("Retry-After", "1")
	w.WriteHeader(http.StatusTooManyRequests)
}

// grant gives out another token, for two requests.
func (a *answering) grant(w http.ResponseWriter) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.token, a.uses = a.token+"x", 2
	_, _ = fmt.Fprintf(w, `{"token":%q,"expires_in":3600}`, a.token)
}

// allowed says whether a request has a good token, and otherwise answers where to get one.
func (a *answering) allowed(w http.ResponseWriter, r *http.Request) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.uses > 0 && r.Header.Get("Authorization") == "Bearer "+a.token {
		a.uses--
		return true
	}
	w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, r.Host))
	w.WriteHeader(http.StatusUnauthorized)
	return false
}
