package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"go.podman.io/image/v5/pkg/docker/config"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
)

// A challenge is one way to authenticate that a registry offers (RFC 9110, section 11.6.1).
type challenge struct {
	scheme string            // in lower case
	params map[string]string // names in lower case
}

// parseChallenges reads the headers WWW-Authenticate, each of which may offer several ways. What is not understood is
// left out.
func parseChallenges(header http.Header) []challenge {
	var all []challenge
	for _, s := range header.Values("WWW-Authenticate") {
		for {
			s = strings.TrimLeft(s, " \t,")
			name, rest := cutToken(s)
			if name == "" {
				break
			}
			if !strings.HasPrefix(rest, "=") {
				all = append(all, challenge{strings.ToLower(name), map[string]string{}})
				s = rest
				continue
			}
			var value string
			value, s = cutValue(rest[1:])
			if len(all) > 0 {
				all[len(all)-1].params[strings.ToLower(name)] = value
			}
		}
	}
	return all
}

// cutToken cuts a token (RFC 9110, section 5.6.2) from the beginning of s.
func cutToken(s string) (token, rest string) {
	i := 0
	for i < len(s) && (s[i] >= 'a' && s[i] <= 'z' || s[i] >= 'A' && s[i] <= 'Z' || s[i] >= '0' && s[i] <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", s[i]) >= 0) {
		i++
	}
	return s[:i], s[i:]
}

// cutValue cuts a token or a quoted string.
func cutValue(s string) (value, rest string) {
	if !strings.HasPrefix(s, `"`) {
		return cutToken(s)
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:]
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String(), ""
}

// The scopes that tokens are asked for (https://distribution.github.io/distribution/spec/auth/scope/). Several of them
// are separated by blanks.
const catalogScope = "registry:catalog:*"

func pullScope(repo string) string   { return "repository:" + repo + ":pull" }
func pushScope(repo string) string   { return "repository:" + repo + ":pull,push" }
func deleteScope(repo string) string { return "repository:" + repo + ":delete,pull" }

// A token authorizes requests of one scope until it expires.
type token struct {
	turn    chan struct{} // holds one element while somebody uses the rest
	header  string        // what stands in Authorization; empty: none yet
	secret  string        // the token alone
	expires time.Time
}

// tokenLife is how long a token is good that does not say: what the specification has for it.
const tokenLife = 60 * time.Second

// authorize returns what a request shall have in Authorization, empty for nothing. refused is what the registry has just
// turned down, and is not returned again. offered are the challenges of that answer: who has no password may get a token.
func (e *endpoint) authorize(ctx context.Context, repo, scope, refused string, offered []challenge) (string, error) {
	for _, c := range e.challengesFor(offered) {
		switch c.scheme {
		case "basic":
			user, err := e.credentials(ctx, repo, refused != "")
			if err != nil {
				return "", err
			}
			if header := basicHeader(user); user.Username != "" && header != refused {
				return header, nil
			}
		case "bearer":
			if asked := c.params["scope"]; asked != "" && refused != "" {
				scope = asked
			}
			return e.bearer(ctx, c, repo, scope, refused)
		}
	}
	return "", nil
}

// challengesFor returns those of the answer at hand, or of /v2/ where it has none that can be met (gcr.io).
func (e *endpoint) challengesFor(offered []challenge) []challenge {
	for _, c := range offered {
		if c.scheme == "basic" || c.scheme == "bearer" {
			return offered
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.challenges
}

// learn keeps the challenges of a registry whose /v2/ has none. Without them each request would go out without a token first,
// and one that has expired would be taken for a good one that was refused.
func (e *endpoint) learn(offered []challenge) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.challenges) == 0 {
		e.challenges = offered
	}
}

func basicHeader(user types.DockerAuthConfig) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user.Username+":"+user.Password))
}

// bearer returns a token for a scope, a new one if the last has expired or was refused. Those who want the same token
// wait for one request.
func (e *endpoint) bearer(ctx context.Context, c challenge, repo, scope, refused string) (string, error) {
	e.mu.Lock()
	t := e.tokens[scope]
	if t == nil {
		if len(e.tokens) >= maxTokens {
			e.forgetTokensLocked(time.Now())
		}
		t = &token{turn: make(chan struct{}, 1)}
		e.tokens[scope] = t
	}
	e.mu.Unlock()
	select {
	case t.turn <- struct{}{}:
		defer func() { <-t.turn }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if t.header != "" && t.header != refused && time.Now().Before(t.expires) {
		return t.header, nil
	}
	user, err := e.credentials(ctx, repo, refused != "")
	if err != nil {
		return "", err
	}
	secret, life, err := e.requestToken(ctx, c, scope, user)
	if err != nil {
		return "", err
	}
	e.mu.Lock()
	delete(e.secrets, t.secret)
	e.secrets[secret] = true
	e.mu.Unlock()
	t.secret, t.header = secret, "Bearer "+secret
	t.expires = time.Now().Add(life * 9 / 10)
	return t.header, nil
}

// maxTokens is how many tokens there may be before those that have expired are forgotten.
const maxTokens = 2000

func (e *endpoint) forgetTokensLocked(now time.Time) {
	for scope, t := range e.tokens {
		select {
		case t.turn <- struct{}{}:
			if now.After(t.expires) {
				delete(e.tokens, scope)
				delete(e.secrets, t.secret)
			}
			<-t.turn
		default: // somebody uses it
		}
	}
}

// requestToken asks the token server that a challenge names, by GET, or with an identity token by POST
// (https://distribution.github.io/distribution/spec/auth/token/ and .../oauth/).
func (e *endpoint) requestToken(ctx context.Context, c challenge, scope string, user types.DockerAuthConfig) (string, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, e.client.limits.document)
	defer cancel()
	req, doing, err := e.tokenRequest(ctx, c, scope, user)
	if err != nil {
		return "", 0, err
	}
	asks, _ := e.tokenClient(req.URL.Host)
	resp, err := asks.Do(req)
	if err != nil {
		return "", 0, sendFailure(doing, err, e.knownSecrets())
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		f := statusFailure(doing, resp, e.knownSecrets())
		if errors.Is(f.condition, imgsrc.ErrDenied) {
			f.text += e.loginHint(user)
		}
		return "", 0, f
	}
	return readToken(doing, resp.Body)
}

func (e *endpoint) tokenRequest(ctx context.Context, c challenge, scope string, user types.DockerAuthConfig) (*http.Request, string, error) {
	realm, err := url.Parse(c.params["realm"])
	open := false
	if err == nil {
		_, open = e.tokenClient(realm.Host)
	}
	// A password goes over an open line only where the registry itself may be spoken to like that.
	if err != nil || realm.Host == "" || realm.Scheme != "https" && (realm.Scheme != "http" || !open) {
		return nil, "", &failure{text: fmt.Sprintf("asking for a token: %s names no token server that can be trusted", e.host), condition: imgsrc.ErrDenied}
	}
	realm.User = nil
	doing := fmt.Sprintf("asking %s://%s for a token", realm.Scheme, realm.Host)
	query := realm.Query()
	if service := c.params["service"]; service != "" {
		query.Set("service", service)
	}
	method, body := http.MethodGet, io.Reader(nil)
	if scope != "" {
		query["scope"] = strings.Fields(scope)
	}
	if user.IdentityToken != "" {
		query.Set("scope", scope)
		query.Set("grant_type", "refresh_token")
		query.Set("refresh_token", user.IdentityToken)
		query.Set("client_id", userAgent)
		method, body = http.MethodPost, strings.NewReader(query.Encode())
		realm.RawQuery = ""
	} else {
		if user.Username != "" {
			query.Set("account", user.Username)
		}
		realm.RawQuery = query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, realm.String(), body)
	if err != nil {
		return nil, "", &failure{text: doing + ": " + clean(err.Error(), e.knownSecrets())}
	}
	req.Header.Set("User-Agent", userAgent)
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	} else if user.Username != "" {
		req.Header.Set("Authorization", basicHeader(user))
	}
	return req, doing, nil
}

func readToken(doing string, body io.Reader) (string, time.Duration, error) {
	var doc struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
	}
	b, err := io.ReadAll(io.LimitReader(body, 1<<20))
	if err == nil {
		err = json.Unmarshal(b, &doc)
	}
	if doc.Token == "" {
		doc.Token = doc.AccessToken
	}
	if err != nil || doc.Token == "" || strings.ContainsAny(doc.Token, "\r\n\x00") {
		return "", 0, &failure{text: doing + ": the answer holds none"} // and is not quoted: it may hold half of one
	}
	life := tokenLife
	if doc.ExpiresIn > 0 && doc.ExpiresIn < 1<<31 {
		life = time.Duration(doc.ExpiresIn) * time.Second
	}
	return doc.Token, life, nil
}

// A login is what the user's configuration has for a repository.
type login struct {
	types.DockerAuthConfig
	found time.Time
}

const (
	loginLife  = 5 * time.Minute  // how long it is kept before the configuration is read again
	helperTime = 30 * time.Second // how long a credential helper may take
)

// credentials looks up who to log in as: in the auth file, in those that podman and Docker write, and with the helpers
// that they name. Nobody is no error. With fresh, what was kept is looked up again: it has been refused.
func (e *endpoint) credentials(ctx context.Context, repo string, fresh bool) (types.DockerAuthConfig, error) {
	key := e.host
	if repo != "" {
		key += "/" + repo
	}
	e.mu.Lock()
	kept, ok := e.logins[key]
	e.mu.Unlock()
	if ok && !fresh && time.Since(kept.found) < loginLife {
		return kept.DockerAuthConfig, nil
	}
	type answer struct {
		user types.DockerAuthConfig
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		user, err := config.GetCredentials(e.client.sys, key)
		got <- answer{user, err}
	}()
	var a answer
	select {
	case a = <-got:
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return a.user, &failure{text: fmt.Sprintf("looking up credentials for %s: %s", key, errHelper), condition: syscall.ETIMEDOUT}
		}
		return a.user, context.Cause(ctx)
	case <-time.After(helperTime):
		a.err = errHelper
	}
	if a.err != nil {
		// A helper that fails is quoted behind "out:", whatever it has printed.
		text, _, _ := strings.Cut(a.err.Error(), "out:")
		return a.user, &failure{text: fmt.Sprintf("looking up credentials for %s: %s", key, clean(text, nil)), condition: imgsrc.ErrDenied}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.logins) >= maxLogins {
		clear(e.logins)
	}
	e.logins[key] = login{a.user, time.Now()}
	return a.user, nil
}

const maxLogins = 2000

var errHelper = errors.New("a credential helper does not answer")

// knownSecrets are all credentials that are at hand, which must appear nowhere.
func (e *endpoint) knownSecrets() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []string
	for s := range e.secrets {
		all = append(all, s)
	}
	seen := map[types.DockerAuthConfig]bool{}
	for _, l := range e.logins {
		if user := l.DockerAuthConfig; !seen[user] && user != (types.DockerAuthConfig{}) {
			seen[user] = true
			all = append(all, strings.TrimPrefix(basicHeader(user), "Basic "), user.Password, user.IdentityToken)
		}
	}
	return all
}

// loginHint says what to do when the registry has refused.
func (e *endpoint) loginHint(user types.DockerAuthConfig) string {
	if user == (types.DockerAuthConfig{}) {
		return fmt.Sprintf(": log in with `podman login %s`, or name the credentials with --authfile", e.host)
	}
	return fmt.Sprintf(": the credentials that are kept for %s are not accepted; log in anew with `podman login %s`", e.host, e.host)
}
