package stream

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/berth-runtime/berth/internal/atomicfile"
)

const (
	// certificateLife is how long a certificate that the server makes is valid.
	certificateLife = 365 * 24 * time.Hour
	// renewalTime is how long before its end it is renewed.
	renewalTime = 30 * 24 * time.Hour
	// backdate is how far clocks may differ.
	backdate = time.Hour
	// serialBits is the length of a random serial number.
	serialBits = 127
)

// TLS is how a [Server] proves who it is, and what it asks of its clients.
type TLS struct {
	// CertFile and KeyFile hold the certificate, in PEM. They are looked at for
	// each connection: new ones are used at once.
	CertFile, KeyFile string
	// Generate has the server write the two files itself, self-signed for the
	// names of this host, when they are not there or about to expire.
	Generate bool
	// ClientCAFile, if not empty, holds authorities; a client then needs a
	// certificate of one of them.
	ClientCAFile string
}

// certificates gives each connection what the files hold now. Files that
// cannot be used leave in force what they held before.
type certificates struct {
	opts TLS
	// address is what the server listens on.
	address net.IP
	log     *slog.Logger
	now     func() time.Time

	mu sync.Mutex
	// config is what stamp was read as; expires is the end of its certificate.
	config  *tls.Config
	stamp   [3]fileStamp
	expires time.Time
}

// fileStamp tells whether a file is still the same one.
type fileStamp struct {
	size  int64
	mtime time.Time
}

// openCertificates reads the files, and makes them first where that is wanted.
func openCertificates(o TLS, address net.Addr, log *slog.Logger) (*certificates, error) {
	c := &certificates{opts: o, log: log, now: time.Now}
	if tcp, ok := address.(*net.TCPAddr); ok {
		c.address = tcp.IP
	}
	if err := c.refresh(); err != nil {
		return nil, fmt.Errorf("prepare TLS of streaming sessions: %w", err)
	}
	return c, nil
}

// listener puts TLS around the connections of l.
func (c *certificates) listener(l net.Listener) net.Listener {
	return tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: c.configFor})
}

// configFor is asked for each connection.
func (c *certificates) configFor(*tls.ClientHelloInfo) (*tls.Config, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.refresh(); err != nil {
		c.log.Warn("the stream server goes on with the certificate that it has", "error", err)
	}
	return c.config, nil
}

// refresh reads the files if they are not those that were read last. After an
// error the former certificate stays. Preconditions: c.mu is held, or c is new.
func (c *certificates) refresh() error {
	stamp, err := c.stamps()
	if c.opts.Generate && (errors.Is(err, fs.ErrNotExist) || c.config != nil && c.expiring(c.expires)) {
		err = c.generate()
		if err == nil {
			stamp, err = c.stamps()
		}
	}
	if err != nil || c.config != nil && stamp == c.stamp {
		return err
	}
	// One complaint per change is enough.
	c.stamp = stamp
	config, expires, err := c.load()
	if c.opts.Generate && (err != nil || c.expiring(expires) || !c.names(config)) {
		if err = c.generate(); err == nil {
			config, expires, err = c.load()
		}
		if err == nil {
			c.stamp, err = c.stamps()
		}
	}
	if err != nil {
		return err
	}
	c.config, c.expires = config, expires
	return nil
}

func (c *certificates) expiring(end time.Time) bool { return c.now().After(end.Add(-renewalTime)) }

// names reports whether a certificate is good for the address listened on.
func (c *certificates) names(config *tls.Config) bool {
	return c.address.IsUnspecified() || config.Certificates[0].Leaf.VerifyHostname(c.address.String()) == nil
}

func (c *certificates) stamps() (stamps [3]fileStamp, err error) {
	for i, file := range []string{c.opts.CertFile, c.opts.KeyFile, c.opts.ClientCAFile} {
		if file == "" {
			continue
		}
		info, err := os.Stat(file)
		if err != nil {
			return stamps, err
		}
		stamps[i] = fileStamp{info.Size(), info.ModTime()}
	}
	return stamps, nil
}

func (c *certificates) load() (*tls.Config, time.Time, error) {
	pair, err := tls.LoadX509KeyPair(c.opts.CertFile, c.opts.KeyFile)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("read %s and %s: %w", c.opts.CertFile, c.opts.KeyFile, err)
	}
	// HTTP/2 has no connection that could be taken over.
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}
	if file := c.opts.ClientCAFile; file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, time.Time{}, fmt.Errorf("read the authorities of clients: %w", err)
		}
		config.ClientCAs, config.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		if !config.ClientCAs.AppendCertsFromPEM(text) {
			return nil, time.Time{}, fmt.Errorf("read the authorities of clients: %s holds no certificate in PEM", file)
		}
	}
	return config, pair.Leaf.NotAfter, nil
}

// generate makes a key and a certificate for the names of this host.
func (c *certificates) generate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
	if err != nil {
		return fmt.Errorf("make a serial number: %w", err)
	}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("read the host name: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: host, Organization: []string{"Berth streaming sessions"}},
		NotBefore: c.now().Add(-backdate), NotAfter: c.now().Add(certificateLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
		DNSNames: []string{"localhost", host}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	if !c.address.IsUnspecified() {
		template.IPAddresses = append(template.IPAddresses, c.address)
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return fmt.Errorf("make a certificate: %w", err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode a key: %w", err)
	}
	// The key first: a certificate whose key is not there yet is of no use.
	return errors.Join(
		replace(c.opts.KeyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600),
		replace(c.opts.CertFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o644))
}

// replace writes a file so that no one sees a part of it.
func replace(file string, data []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("make directory for %s: %w", file, err)
	}
	return atomicfile.Write(file, data, mode)
}
